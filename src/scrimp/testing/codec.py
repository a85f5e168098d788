"""The conformance suite of codecs: what a checkpoint store takes for granted, tried on many tensors."""

import json
from collections.abc import Mapping

import torch
from torch import Tensor

from scrimp._core.tensor_role import TensorRole
from scrimp.checkpoints import BoundKind, Codec, Encoded, Group, TensorError
from scrimp.errors import ConfigError, FormatError
from scrimp.testing.codec_cases import CodecCase, codec_cases
from scrimp.testing.stateful import assert_same_state, check_global_rng_untouched, copy_state

_LOSSY_ROLES = (TensorRole.WEIGHT, TensorRole.FIRST_MOMENT, TensorRole.SECOND_MOMENT, TensorRole.MOMENTUM)
_SMALL = 256
_ROUNDING = 1 + 1e-5


def check_codec(codec: Codec, *, num_cases: int = 200, seed: int = 0, vectors_are_exact: bool = True) -> None:
    """Put a codec through random groups: every dtype, odd shapes, NaN, infinities, denormals, with and without base.

    Checked: what is decoded is, bit for bit, what ``encode`` said; names, shapes and dtypes are kept; slots can be
    decoded alone; arguments are left alone; the same input gives the same bytes; errors are reported as they are and
    within the bound; what must not be lossy is not (integers, counters, buffers, scores; tensors of one dimension or
    under 256 values, unless ``vectors_are_exact`` is false); a missing base and a truncated payload are refused;
    settings survive JSON; no global generator is used.

    Raises: AssertionError - the first check that failed, and for which tensors.
    Cost: about 3 ms per case and encoding.
    """
    settings = json.loads(json.dumps(codec.to_state()))
    assert type(codec).from_state(settings) == codec, f"the settings {settings} do not make the same {codec.name} codec"

    def check_all() -> None:
        for case in codec_cases(num_cases, seed=seed):
            try:
                _check_case(codec, case, vectors_are_exact)
            except AssertionError as error:
                raise AssertionError(f"{codec.name}, {case.what}: {error}") from error

    check_global_rng_untouched(check_all)


def _check_case(codec: Codec, case: CodecCase, vectors_are_exact: bool) -> None:
    arguments = {"tensors": dict(case.group.tensors), "base": case.base, "previous": case.previous}
    before = {name: copy_state(value) for name, value in arguments.items()}
    encoded = codec.encode(case.group, case.base, previous=case.previous)
    decoded = codec.decode(encoded.payload, case.base)
    for name, value in arguments.items():
        assert_same_state(value, before[name], f"the argument {name}")
    assert_same_state(decoded, dict(encoded.decoded), "what decode returns")
    again = codec.encode(case.group, case.base, previous=case.previous)
    assert again.payload == encoded.payload, "the same input gave other bytes"
    _check_slots(codec, case, encoded)
    _check_refusals(codec, case, encoded)
    _check_memory(case, encoded)
    for slot, tensor in case.group.tensors.items():
        try:
            must_be_exact = _must_be_exact(case.group, slot, vectors_are_exact)
            _check_error(case, slot, tensor, decoded, encoded.errors[slot], must_be_exact)
        except AssertionError as error:
            raise AssertionError(f"slot {slot!r}: {error}") from error


def _check_slots(codec: Codec, case: CodecCase, encoded: Encoded) -> None:
    slots = set(case.group.tensors)
    assert set(encoded.decoded) == set(encoded.errors) == slots, "the slots differ from those of the group"
    for slot in slots:
        alone = codec.decode(encoded.payload, case.base, slots=[slot])
        assert_same_state(alone, {slot: encoded.decoded[slot]}, f"slot {slot!r}, decoded alone,")
    assert codec.decode(encoded.payload, case.base, slots=[]) == {}, "no slots were asked for"


def _check_refusals(codec: Codec, case: CodecCase, encoded: Encoded) -> None:
    for length in {0, 1, len(encoded.payload) // 2, len(encoded.payload) - 1}:
        try:
            decoded = codec.decode(encoded.payload[:length], case.base)
        except FormatError:
            continue
        # a payload that ends between two slots cannot know of the others
        assert set(decoded) < set(case.group.tensors), f"decoded from {length} of {len(encoded.payload)} bytes"
    if case.base is not None:
        try:
            without = codec.decode(encoded.payload, None)
        except ConfigError:
            return
        assert_same_state(without, dict(encoded.decoded), "what is decoded without the base that was given")


def _check_memory(case: CodecCase, encoded: Encoded) -> None:
    given = [*case.group.tensors.values(), *(case.base or {}).values(), *(case.previous or {}).values()]
    places = {tensor.data_ptr() for tensor in given if tensor.numel()}
    shared = [slot for slot, tensor in encoded.decoded.items() if tensor.numel() and tensor.data_ptr() in places]
    assert not shared, f"decoded tensors {shared} share the memory of an argument"


def _check_error(
    case: CodecCase, slot: str, tensor: Tensor, decoded: Mapping[str, Tensor], error: TensorError, must_be_exact: bool
) -> None:
    coded = decoded[slot]
    assert coded.dtype == tensor.dtype, f"{tensor.dtype} came back as {coded.dtype}"
    assert coded.shape == tensor.shape, f"{tuple(tensor.shape)} came back as {tuple(coded.shape)}"
    if must_be_exact or error.is_exact:
        assert_same_state(coded, tensor, "what must be exact")
        assert error.is_exact, f"it is exact, but its bound is {error.bound}"
    if not tensor.is_floating_point():
        return
    truth, value = tensor.double(), coded.double()
    finite = truth.isfinite()
    if error.bound is not None:
        assert_same_state(coded[~finite], tensor[~finite], "what is not finite")
    difference = (value - truth)[finite & value.isfinite()].abs()
    if difference.numel():
        max_abs, rms = float(difference.max()), float(difference.square().mean().sqrt())
        assert abs(error.max_abs - max_abs) <= 1e-3 * max_abs, f"max_abs is {error.max_abs}, measured {max_abs}"
        is_close = error.rms == rms or abs(error.rms - rms) <= 1e-2 * rms + 1e-300
        assert is_close, f"rms is {error.rms}, measured {rms}"
        if error.limit is not None:
            assert max_abs <= error.limit * _ROUNDING, f"an error of {max_abs}; the limit is {error.limit}"
    _check_bound(case, slot, truth[finite], value[finite], error)


def _check_bound(case: CodecCase, slot: str, truth: Tensor, value: Tensor, error: TensorError) -> None:
    if error.bound is None or not truth.numel():
        return
    difference, asked = (value - truth).abs().max(), error.bound.value
    match error.bound.kind:
        case BoundKind.ABSOLUTE:
            assert difference <= asked * _ROUNDING, f"an error of {difference}, promised {asked}"
        case BoundKind.RMS:
            rms = truth.square().mean().sqrt()
            assert difference <= asked * rms * _ROUNDING, f"an error of {difference}, promised {asked} x {rms}"
        case BoundKind.MOVEMENT if case.previous is not None and slot in case.previous:
            movement = case.group.tensors[slot].double() - case.previous[slot].double()
            rms = movement[movement.isfinite()].square().mean().sqrt()
            assert difference <= asked * rms * _ROUNDING, f"an error of {difference}, promised {asked} x {rms}"
        case BoundKind.FACTOR:
            assert bool(((truth == 0) == (value == 0)).all()), "zeros are not where they were"
            ratio = (value / truth)[truth != 0]
            assert bool((ratio > 0).all()), "a sign changed"
            wrong = ratio.log().abs().max().exp() if ratio.numel() else torch.tensor(1.0)
            assert wrong <= asked * _ROUNDING, f"wrong by a factor of {wrong}, promised {asked}"
        case _:
            pass


def _must_be_exact(group: Group, slot: str, vectors_are_exact: bool) -> bool:
    tensor = group.tensors[slot]
    is_small = sum(size > 1 for size in tensor.shape) < 2 or tensor.numel() < _SMALL
    return (is_small and vectors_are_exact) or not tensor.is_floating_point() or group.roles[slot] not in _LOSSY_ROLES
