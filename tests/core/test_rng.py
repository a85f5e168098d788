import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from scrimp._core.rng import capture_global_rng, generator, restore_global_rng, stream_seed
from scrimp.errors import ConfigError
from scrimp.testing import check_global_rng_untouched, copy_state


def test_the_seed_of_a_stream_is_pinned():
    # Changing any of these changes every run of every user: resumes and published seeds would no longer repeat.
    assert stream_seed(0) == 4774516902939907285
    assert stream_seed(0, "shuffle", 0) == 2286908570999938001
    assert stream_seed(-1, "transform", 2, 10**20) == 1934544045328001355


def test_streams_are_told_apart_by_value_type_and_cut():
    names = [
        (0,),
        (1,),
        (0, 0),
        (0, "0"),
        (0, "a", "b"),
        (0, "ab"),
        (0, "a", 0, "b"),
        (0, ""),
        (0, "", ""),
        (0, 12),
        (0, 1, 2),
    ]
    assert len({stream_seed(*name) for name in names}) == len(names)


def test_a_stream_is_the_same_in_another_process():
    code = (
        "import torch; from scrimp._core.rng import generator\n"
        "print(torch.randperm(9, generator=generator(3, 'x')).tolist())"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == str(torch.randperm(9, generator=generator(3, "x")).tolist())


def test_neighbouring_streams_are_not_correlated():
    draws = torch.stack([torch.rand(2000, generator=generator(0, "epoch", e), dtype=torch.float64) for e in range(8)])
    correlation = torch.corrcoef(draws) - torch.eye(8)
    assert correlation.abs().max() < 0.1  # 4.5 standard errors of 1 / sqrt(2000)


@pytest.mark.parametrize("name", [(1.0,), ("0",), (True,), (None,), (0, 1.5), (0, True), (0, None)])
def test_a_name_of_other_things_is_refused(name):
    with pytest.raises(ConfigError, match="it has to be an integer"):
        stream_seed(*name)


def test_no_global_generator_is_touched():
    check_global_rng_untouched(lambda: torch.rand(3, generator=generator(0, "x")))


def draw_from_all():
    numpy_draws = np.random.rand(3).tolist(), np.random.randn()  # noqa: NPY002
    return torch.rand(3).tolist(), random.random(), random.gauss(0, 1), numpy_draws


def test_global_generators_continue_from_a_stored_state():
    at_start = capture_global_rng()
    try:
        draw_from_all()  # leaves one spare normal value in Python's and in NumPy's generator
        stored = copy_state(capture_global_rng())
        expected = [draw_from_all() for _ in range(2)]
        assert draw_from_all() not in expected
        restore_global_rng(stored)
        assert [draw_from_all() for _ in range(2)] == expected
    finally:
        restore_global_rng(at_start)


def test_an_incomplete_state_changes_nothing():
    state = capture_global_rng()
    del state["numpy"]

    def restore():
        with pytest.raises(ConfigError, match="lacks numpy"):
            restore_global_rng(state)

    check_global_rng_untouched(restore)


def test_capturing_does_not_start_cuda():
    capture_global_rng()
    assert torch.cuda.is_available() or not torch.cuda.is_initialized()
