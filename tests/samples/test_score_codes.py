import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scrimp.samples.score_codes import Histogram, code_values, score_codes

floats = st.floats(width=32, allow_nan=False, allow_infinity=False).map(lambda x: float(torch.tensor(x).bfloat16()))
scores = st.lists(floats.filter(math.isfinite), min_size=1, max_size=60)


@given(scores)
@settings(deadline=None)
def test_codes_keep_the_order_and_come_back(values):
    tensor = torch.tensor(values, dtype=torch.bfloat16)
    codes = score_codes(tensor)
    assert codes.min() >= 0
    assert codes.max() < 65536
    assert torch.equal(code_values(codes), tensor.double())
    distinct = sorted({(float(v), int(c)) for v, c in zip(tensor, codes, strict=True) if v != 0})
    assert [c for _, c in distinct] == sorted(c for _, c in distinct)


@given(scores)
@settings(deadline=None)
def test_the_histogram_counts(values):
    tensor = torch.tensor([*values, math.nan, math.nan], dtype=torch.bfloat16)
    histogram = Histogram.of(tensor)
    assert int(histogram.counts.sum()) == len(values)
    assert torch.equal(histogram.values.repeat_interleave(histogram.counts), tensor[:-2].double().sort().values)


@given(scores, st.floats(0.01, 1))
@settings(deadline=None)
def test_quantiles_are_the_smallest_score_that_so_many_do_not_exceed(values, level):
    tensor = torch.tensor(values, dtype=torch.bfloat16).double()
    quantile = Histogram.of(tensor.bfloat16()).quantiles((level,))[0]
    ordered = tensor.sort().values
    assert quantile == float(ordered[math.ceil(level * len(values) - 1e-9) - 1])


def test_no_scores_have_no_quantiles():
    assert math.isnan(Histogram.of(torch.full((3,), math.nan, dtype=torch.bfloat16)).quantiles((0.5,))[0])


@pytest.mark.parametrize("level", [0.0, 1.0])
def test_the_ends(level):
    assert Histogram.of(torch.tensor([1.0, 2, 4], dtype=torch.bfloat16)).quantiles((level,))[0] == (4 if level else 1)
