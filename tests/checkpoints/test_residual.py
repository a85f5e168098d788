"""The default codec keeps to its bounds, feeds on no error of its own, and is small."""

import itertools
import math

import pytest
import torch
from tests.reference.training_states import adam_states

from scrimp._core.tensor_role import TensorRole
from scrimp.checkpoints import Bound, Group, Lossless, Residual
from scrimp.errors import ConfigError
from scrimp.testing import assert_same_state, check_codec

ROLES = {
    "weight": TensorRole.WEIGHT,
    "exp_avg": TensorRole.FIRST_MOMENT,
    "exp_avg_sq": TensorRole.SECOND_MOMENT,
    "momentum_buffer": TensorRole.MOMENTUM,
}


def group_of(**tensors):
    return Group(tensors, {slot: ROLES[slot] for slot in tensors})


def rms(tensor):
    return float(tensor.double().square().mean().sqrt())


@pytest.mark.parametrize(
    "codec",
    [
        Residual(),
        Residual.small(),
        Residual(
            error=Bound.absolute(1e-3), second_moment=Bound.factor(1.5), first_moment=Bound.of_rms(0.1),
            momentum=Bound.of_movement(0.3),
        ),
        Residual(error=Bound.of_rms(0.01), first_moment=Bound.exact(), momentum=None),
    ],
    ids=["default", "small", "all bounds", "others"],
)  # fmt: skip
def test_conforms(codec):
    check_codec(codec, num_cases=60, vectors_are_exact=codec.vectors == Bound.exact())


def test_everything_exact_is_lossless():
    exact = Bound.exact()
    codec = Residual(error=exact, second_moment=exact, first_moment=exact, momentum=exact)
    before, after = adam_states(2)
    encoded = codec.encode(group_of(**after), before, previous=before)
    assert_same_state(dict(encoded.decoded), after)
    assert len(encoded.payload) == len(Lossless().encode(group_of(**after), before).payload)


def test_a_keyframe_is_exact():
    (state,) = adam_states(1)
    encoded = Residual().encode(group_of(**state), None)
    assert_same_state(dict(encoded.decoded), state)
    assert all(error.is_exact for error in encoded.errors.values())


def test_weights_are_within_a_part_of_the_true_movement():
    before, after = adam_states(2)
    far = {**before, "weight": before["weight"] + 0.01 * torch.sign(before["weight"])}  # an old error in the base
    for base in (before, far):
        encoded = Residual(error=Bound.of_movement(0.25)).encode(group_of(**after), base, previous=before)
        error, movement = encoded.errors["weight"], rms(after["weight"] - before["weight"])
        assert error.bound == Bound.of_movement(0.25)
        assert error.limit == pytest.approx(0.25 * movement)
        largest = float((encoded.decoded["weight"] - after["weight"]).abs().max())
        assert largest == pytest.approx(error.max_abs)
        assert 0.24 * movement < largest <= 0.25 * movement
        assert error.relative_to_movement == pytest.approx(error.rms / movement)
        assert error.relative_to_tensor == pytest.approx(error.rms / rms(after["weight"]))


def test_what_training_gained_under_its_noise_is_kept_on_average():
    """A drift of a twentieth of the noise; with a dead zone of 0.6 steps, 8 % of it would be lost."""
    draw = torch.Generator().manual_seed(0)
    drift = 0.05 * torch.randn(1500, 1000, generator=draw).sign()
    before = torch.zeros_like(drift)
    after = drift + torch.randn(drift.shape, generator=draw)
    for error in (0.3, 1.0):
        codec = Residual(error=Bound.of_movement(error))
        decoded = codec.encode(group_of(weight=after), {"weight": before}, previous={"weight": before}).decoded[
            "weight"
        ]
        kept = float((decoded * drift).double().mean() / (after * drift).double().mean())
        assert kept == pytest.approx(1, abs=0.035), error


def test_without_previous_values_the_distance_to_the_base_is_taken():
    before, after = adam_states(2)
    known = Residual().encode(group_of(**after), before, previous=before)
    unknown = Residual().encode(group_of(**after), before)
    assert unknown.errors["weight"].limit == known.errors["weight"].limit
    assert unknown.errors["weight"].bound == Bound.absolute(known.errors["weight"].limit)
    assert unknown.errors["weight"].relative_to_movement is None
    assert_same_state(dict(unknown.decoded), dict(known.decoded))


@pytest.mark.parametrize("codec", [Residual(), Residual.small()], ids=["default", "small"])
def test_errors_stay_as_they_are_along_fifty_checkpoints(codec):
    states = adam_states(52, shape=(128, 256))
    base, errors = states[0], []
    for previous, state in itertools.pairwise(states):
        encoded = codec.encode(group_of(**state), base, previous=previous)
        base = dict(encoded.decoded)
        errors.append(encoded.errors["weight"].relative_to_movement)
    assert len(errors) == 51
    assert max(errors) < 1.2 * errors[0]


def test_second_moments_are_zero_where_they_were_zero_and_nowhere_else():
    before, after = adam_states(2)
    after["exp_avg_sq"][3] = 0
    after["exp_avg_sq"][:, 5] *= 1e-30
    after["exp_avg_sq"][7, 9] = 1e-42  # denormal
    for codec in (Residual(), Residual.small()):
        encoded = codec.encode(group_of(**after), before)
        decoded, true = encoded.decoded["exp_avg_sq"], after["exp_avg_sq"]
        assert_same_state(decoded == 0, true == 0)
        wrong = float((decoded / true)[true > 0].log2().abs().max())
        assert 0.5 < wrong <= math.log2(codec.second_moment.value)
        assert decoded[7, 9] == true[7, 9]


def test_first_moments_are_in_units_of_the_root_of_second_moments():
    before, after = adam_states(2)
    encoded = Residual(first_moment=Bound.of_root(0.1)).encode(group_of(**after), before)
    wrong = (encoded.decoded["exp_avg"] - after["exp_avg"]).abs() / encoded.decoded["exp_avg_sq"].sqrt()
    assert 0.09 < float(wrong.max()) <= 0.1 * 1.00001
    after["exp_avg_sq"][2] = 0  # first moments that have no unit are kept as they are
    encoded = Residual().encode(group_of(**after), before)
    assert_same_state(encoded.decoded["exp_avg"][2], after["exp_avg"][2])


def test_first_moments_alone_are_decoded_with_what_they_need():
    before, after = adam_states(2)
    encoded = Residual().encode(group_of(**after), before)
    assert_same_state(
        Residual().decode(encoded.payload, None, slots=["exp_avg"]), {"exp_avg": encoded.decoded["exp_avg"]}
    )


def test_dropped_moments_promise_nothing():
    before, after = adam_states(2)
    after["momentum_buffer"] = after["exp_avg"].clone()
    encoded = Residual(first_moment=None, momentum=None).encode(group_of(**after), before)
    for slot in ("exp_avg", "momentum_buffer"):
        assert not encoded.decoded[slot].any()
        assert encoded.errors[slot].bound is None
        assert encoded.errors[slot].relative_to_tensor == pytest.approx(1.0)
        assert encoded.errors[slot].max_abs == pytest.approx(float(after[slot].abs().max()))


def test_a_first_moment_alone_is_a_momentum():
    """As in Lion, which divides by nothing."""
    before, after = adam_states(2)
    lion = {"weight": after["weight"], "exp_avg": after["exp_avg"]}
    encoded = Residual(momentum=Bound.of_rms(0.2)).encode(group_of(**lion), before)
    assert encoded.errors["exp_avg"].bound == Bound.of_rms(0.2)
    assert not encoded.errors["exp_avg"].is_exact


def test_sizes():
    before, after = adam_states(2)
    group = group_of(**after)
    sizes = {
        name: len(codec.encode(group, before, previous=before).payload)
        for name, codec in (("lossless", Lossless()), ("default", Residual()), ("small", Residual.small()))
    }
    assert group.raw_bytes / sizes["lossless"] < 2
    assert group.raw_bytes / sizes["default"] > 25
    assert group.raw_bytes / sizes["small"] > 70


def test_unmoved_weights_cost_nothing():
    (state,) = adam_states(1)
    encoded = Residual(first_moment=None).encode(group_of(**state), state, previous=state)
    assert encoded.errors["weight"].is_exact
    assert encoded.errors["weight"].coded_bytes < 200


def test_half_precision_weights_that_hardly_move():
    """When most steps are below the last bit, what is left is exact."""
    weight = torch.rand(300, 300, generator=torch.Generator().manual_seed(0)).add_(1).bfloat16()
    moved = weight.clone()
    moved[::7, ::11] *= 1 + 2**-7
    encoded = Residual().encode(group_of(weight=moved), {"weight": weight}, previous={"weight": weight})
    assert_same_state(encoded.decoded["weight"], moved)
    assert len(encoded.payload) < 0.02 * moved.numel() * 2


def test_settings():
    codec = Residual(error=Bound.of_rms(0.1), first_moment=None)
    assert codec.to_state()["first_moment"] is None
    assert Residual.from_state({"error": Bound.of_rms(0.1).to_state(), "first_moment": None}) == codec
    with pytest.raises(ConfigError, match=r"no settings \['eror'\]"):
        Residual.from_state({"eror": 1})
    for name, bound in (
        ("error", None), ("error", 0.6), ("error", Bound.factor(2)), ("second_moment", None),
        ("second_moment", Bound.of_rms(1)), ("momentum", Bound.of_root(1)), ("first_moment", Bound.factor(2)),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=rf"Residual\({name}="):
            Residual(**{name: bound})


def vector_states():
    """A bias before and after some steps, with its moments; the scale of each element's gradient differs."""
    draw = torch.Generator().manual_seed(3)
    scale = torch.randn(128, generator=draw).exp_()
    before = {"weight": torch.randn(128, generator=draw)}
    after = {
        "weight": before["weight"] + 0.01 * torch.randn(128, generator=draw),
        "exp_avg": scale * torch.randn(128, generator=draw),
        "exp_avg_sq": (scale * torch.randn(128, generator=draw)).square(),
    }
    return before, after


def test_vectors_are_exact_unless_that_is_asked_for():
    before, after = vector_states()
    exact = Residual().encode(group_of(**after), before, previous=before)
    assert all(error.is_exact for error in exact.errors.values())
    small = Residual.small().encode(group_of(**after), before, previous=before)
    movement = rms(after["weight"] - before["weight"])
    assert 0 < small.errors["weight"].max_abs <= 0.25 * movement
    factors = (small.decoded["exp_avg_sq"] / after["exp_avg_sq"]).log2().abs()
    assert 0.3 < float(factors.max()) <= 1
    assert small.errors["exp_avg_sq"].bound == Bound.factor(2.0)
    assert not small.decoded["exp_avg"].any()
    assert len(small.payload) < len(exact.payload) / 4


def test_which_tensors_are_rounded():
    """Matrices of 256 values and more; of one dimension is also what has others of length 1."""
    for shape, is_rounded in (
        ((16, 16), True), ((16, 16, 1, 1), True), ((3, 5, 17), False), ((4096,), False), ((1, 1, 4096), False),
        ((4096, 1, 1), False),
    ):  # fmt: skip
        draw = torch.Generator().manual_seed(0)
        before = {"weight": torch.randn(shape, generator=draw)}
        after = {"weight": torch.randn(shape, generator=draw), "momentum_buffer": torch.randn(shape, generator=draw)}
        encoded = Residual().encode(group_of(**after), before, previous=before)
        assert [error.is_exact for error in encoded.errors.values()] == [not is_rounded] * 2, shape


def test_scales_and_statistics_are_exact_even_in_the_smallest():
    before, after = vector_states()
    roles = {"weight": TensorRole.BUFFER, "exp_avg": TensorRole.EXACT, "exp_avg_sq": TensorRole.SCORE}
    encoded = Residual.small().encode(Group(after, roles), before, previous=before)
    assert_same_state(dict(encoded.decoded), after)
    tiny = {slot: tensor[:15] for slot, tensor in after.items()}
    encoded = Residual.small().encode(group_of(**tiny), {"weight": before["weight"][:15]})
    assert_same_state(dict(encoded.decoded), tiny)
