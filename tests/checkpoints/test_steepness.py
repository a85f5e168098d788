"""Steps of weights that are finer where second moments are large."""

import math

import pytest
import torch
from tests.checkpoints.test_residual import adam_states, group_of

from scrimp.checkpoints import Bound, Residual
from scrimp.checkpoints.measure import root
from scrimp.checkpoints.steepness import fineness, level_of
from scrimp.errors import ConfigError, CorruptCheckpointError


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_steps_go_with_the_fourth_root_down_to_an_eighth(dtype):
    values = torch.tensor([0.0, 0.5, 1.0, 16.0, 81.0, 4096.0, 1e9, math.inf, math.nan], dtype=dtype)
    expected = torch.tensor([1, 1, 1, 1 / 2, 1 / 3, 1 / 8, 1 / 8, 1 / 8, 1], dtype=dtype)
    torch.testing.assert_close(fineness(values, 1.0), expected)


@pytest.mark.parametrize(
    ("values", "level"), [([1.0, 3.0], 0.2), ([0.0, 0.0], None), ([1.0, math.nan], None), ([1.0, math.inf], None)]
)
def test_the_level_is_a_share_of_the_mean(values, level):
    assert level_of(torch.tensor(values), 0.1) == (None if level is None else pytest.approx(level))


def test_roots_are_rounded_correctly():
    """In float64 a float32's root has digits enough that rounding it once more changes nothing (Figueroa, 1995)."""
    values = torch.rand(1 << 16, generator=torch.Generator().manual_seed(0)).mul_(3).add_(1)
    exact = torch.tensor([math.sqrt(value) for value in values.tolist()], dtype=torch.float64)
    assert torch.equal(root(values), exact.float())
    assert torch.equal(root(values.double()), exact)
    assert root(torch.tensor([-1.0, math.nan, math.inf])).isnan().tolist() == [True, True, False]


def steep_states():
    """Weights whose gradients are 16 times larger in the second half of the columns: their second moments 256 times."""
    before, after = adam_states(2)
    after["exp_avg_sq"] = torch.full_like(after["exp_avg_sq"], 1e-6)
    after["exp_avg_sq"][:, after["weight"].shape[1] // 2 :] *= 256
    return before, after


def test_errors_are_smaller_where_second_moments_are_large():
    before, after = steep_states()
    half = after["weight"].shape[1] // 2
    movement = float((after["weight"] - before["weight"]).double().square().mean().sqrt())
    flat, steep = (
        Residual(steep_from=share, second_moment=Bound.exact()).encode(group_of(**after), before, previous=before)
        for share in (None, 2 / 257)  # from the second moments of the first half on
    )
    for encoded, least in ((flat, 1.0), (steep, 0.25)):
        errors = (encoded.decoded["weight"] - after["weight"]).abs() / movement
        assert 0.95 < float(errors[:, :half].max()) <= 1.0001
        assert 0.95 * least < float(errors[:, half:].max()) <= 1.0001 * least
    assert steep.errors["weight"].limit == flat.errors["weight"].limit == pytest.approx(movement)
    assert steep.errors["weight"].rms < flat.errors["weight"].rms
    assert steep.errors["weight"].coded_bytes > flat.errors["weight"].coded_bytes


def test_weights_alone_are_decoded_with_what_they_need():
    before, after = steep_states()
    encoded = Residual().encode(group_of(**after), before, previous=before)
    alone = Residual().decode(encoded.payload, before, slots=["weight"])
    assert torch.equal(alone["weight"], encoded.decoded["weight"])


def test_where_finer_steps_are_below_the_last_digit_steps_are_alike():
    """Of a bfloat16 weight whose steps are near its own precision nothing would be left to round."""
    before, after = steep_states()
    before, after = {**before, "weight": before["weight"].bfloat16()}, {**after, "weight": after["weight"].bfloat16()}
    encoded = [Residual(steep_from=share).encode(group_of(**after), before, previous=before) for share in (None, 0.1)]
    sizes = [one.errors["weight"].coded_bytes for one in encoded]
    assert not encoded[1].errors["weight"].is_exact
    assert sizes[1] < 3 * sizes[0]


def test_without_second_moments_all_steps_are_alike():
    before, after = adam_states(2)
    group = group_of(weight=after["weight"], exp_avg=after["exp_avg"])
    payloads = [Residual(steep_from=share).encode(group, before, previous=before).payload for share in (None, 0.1)]
    assert payloads[0] == payloads[1]


def test_a_unit_that_is_none_is_named():
    before, after = steep_states()
    payload = Residual(first_moment=None).encode(group_of(**after), before, previous=before).payload
    assert payload.count(b"exp_avg_sq") >= 2  # the slot, and the name in the weight's body
    last = payload.rindex(b"exp_avg_sq")
    altered = payload[:last] + b"weight____" + payload[last + 10 :]
    with pytest.raises(CorruptCheckpointError):
        Residual().decode(altered, before, slots=["weight"])


@pytest.mark.parametrize("share", [0, -1.0, math.inf, math.nan, "0.1", True])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ConfigError, match="steep_from"):
        Residual(steep_from=share)


def test_settings_come_back():
    for codec in (Residual(), Residual(steep_from=None), Residual.small()):
        assert Residual.from_state(codec.to_state()) == codec
