"""Nested state as flat tensors and a JSON text, and back."""

import json
import math
from collections import OrderedDict
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from scrimp._core.state_tree import flatten_state, unflatten_state
from scrimp.errors import ConfigError, FormatError


def through_bytes(state: Any) -> Any:
    """The state after a way through a safetensors file, which refuses what shares memory or is not dense."""
    tensors, text = flatten_state(state)
    return unflatten_state(safetensors.torch.load(safetensors.torch.save(tensors)), text)


def same(ours: Any, theirs: Any) -> bool:
    """Equal in type, structure and bits; a slow twin that knows nothing of the implementation."""
    if isinstance(ours, Tensor):
        return (
            isinstance(theirs, Tensor)
            and ours.dtype == theirs.dtype
            and ours.shape == theirs.shape
            and bits(ours) == bits(theirs)
        )
    if type(ours) is not type(theirs):
        return False
    if isinstance(ours, dict):
        return list(map(key_of, ours)) == list(map(key_of, theirs)) and all(same(ours[k], theirs[k]) for k in ours)
    if isinstance(ours, list | tuple):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    if isinstance(ours, float):
        return ours.hex() == theirs.hex()
    return bool(ours == theirs)


def key_of(key: Any) -> tuple[type, Any]:
    return type(key), key


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


DTYPES = [
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool, torch.complex64,
]  # fmt: skip


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 3), max_size=5))
    size = math.prod(shape)
    raw = torch.frombuffer(bytearray(draw(st.binary(min_size=16, max_size=16)) * max(size, 1)), dtype=torch.uint8)
    flat = (raw % 2).bool() if dtype is torch.bool else raw.view(dtype)
    return flat[:size].reshape(shape).permute(draw(st.permutations(range(len(shape)))))


KEYS = st.one_of(
    st.text(max_size=3), st.sampled_from(["a/b", "a", "b", "0", "a#2", "tensor", "dict"]), st.integers(0, 3)
)
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=5), tensors()
)  # fmt: skip
STATES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(KEYS, inner, max_size=4),
    ),
    max_leaves=12,
)


@settings(deadline=None, max_examples=150)
@given(state=STATES)
def test_round_trip_of_any_state(state: Any) -> None:
    assert same(state, through_bytes({"extra": state})["extra"])


def test_the_twin_can_tell_states_apart() -> None:
    assert same({"a": [1, torch.tensor([0.0])]}, {"a": [1, torch.tensor([0.0])]})
    for other in ({"a": (1,)}, {"a": [True]}, {"a": [1.0]}, {"b": [1]}, {"a": [torch.tensor(1)]}):
        assert not same({"a": [1]}, other)
    assert not same(torch.tensor([0.0]), torch.tensor([-0.0]))
    assert not same({1: 0}, {True: 0})


def test_numbers_that_json_is_weak_at() -> None:
    state = {"nan": math.nan, "inf": [math.inf, -math.inf], "zero": -0.0, "tenth": 0.1, "big": 2**80, "tiny": 5e-324}
    back = through_bytes(state)
    assert math.isnan(back.pop("nan"))
    state.pop("nan")
    assert same(state, back)


def test_key_types_and_order_are_kept() -> None:
    state = {3: "c", "3": "text", False: "no", "x": {2: torch.tensor(1), 1: torch.tensor(2)}}
    back = through_bytes(state)
    assert [(type(key), key) for key in back] == [(int, 3), (str, "3"), (bool, False), (str, "x")]
    assert list(back["x"]) == [2, 1]


def test_equal_paths_are_two_tensors() -> None:
    state = {"a/b": torch.tensor(1), "a": {"b": torch.tensor(2)}, 1: torch.tensor(3), "1": torch.tensor(4)}
    assert same(state, through_bytes(state))


def test_names_are_paths() -> None:
    state = {
        "model": OrderedDict([("conv.weight", torch.ones(1))]),
        "slots": [{"m": torch.ones(2)}, 3, (torch.ones(3),)],
    }
    stored, _ = flatten_state(state)
    assert {name: tensor.numel() for name, tensor in stored.items()} == {
        "model/conv.weight": 1, "slots/0/m": 2, "slots/2/0": 3
    }  # fmt: skip


def test_a_bare_tensor_is_a_state() -> None:
    assert same(torch.arange(3), unflatten_state(*flatten_state(torch.arange(3))))


def test_tied_tensors_are_stored_once_and_stay_tied() -> None:
    weight = torch.nn.Parameter(torch.randn(4, 3))
    state = {"embed": weight, "head": weight.detach(), "other": torch.randn(4, 3)}
    stored, text = flatten_state(state)
    assert set(stored) == {"embed", "other"}
    back = unflatten_state(stored, text)
    assert back["embed"].data_ptr() == back["head"].data_ptr()
    assert same(state["other"], back["other"])


def test_views_of_one_storage_are_different_tensors() -> None:
    base = torch.arange(12.0).reshape(3, 4)
    state = {"all": base, "flat": base.view(-1), "row": base[0], "turned": base.t(), "as int": base.view(torch.int32)}
    back = through_bytes(state)
    assert same({k: v.clone() for k, v in state.items()}, back)
    assert len(flatten_state(state)[0]) == 5


def test_conjugates_and_negatives_are_not_mistaken_for_their_originals() -> None:
    z = torch.tensor([1 + 2j, 3 - 4j])
    back = through_bytes({"z": z, "conj": z.conj(), "minus imag": z.conj().imag})
    assert back["conj"].tolist() == [1 - 2j, 3 + 4j]
    assert back["z"].tolist() == [1 + 2j, 3 - 4j]
    assert back["minus imag"].tolist() == [-2.0, 4.0]


def test_a_slice_does_not_drag_its_storage_along() -> None:
    large = torch.zeros(1000, 10)
    stored, _ = flatten_state({"row": large[3], "column": large[:, 3], "expanded": torch.ones(1).expand(7)})
    sizes = {name: tensor.untyped_storage().nbytes() for name, tensor in stored.items()}
    assert sizes == {"row": 40, "column": 4000, "expanded": 28}


@pytest.mark.parametrize(
    ("shape", "memory_format"), [((2, 3, 4, 5), torch.channels_last), ((2, 3, 4, 5, 6), torch.channels_last_3d)]
)
def test_channels_last_is_kept(shape: tuple[int, ...], memory_format: torch.memory_format) -> None:
    tensor = torch.randn(shape).to(memory_format=memory_format)
    back = through_bytes({"last": tensor, "first": tensor.contiguous()})
    assert back["last"].stride() == tensor.stride() != back["first"].stride()
    assert torch.equal(back["last"], tensor)
    assert torch.equal(back["first"], tensor)


@pytest.mark.parametrize(
    "tensor",
    [torch.tensor(3.5), torch.zeros(0), torch.zeros(0, 5), torch.tensor([True, False]), torch.tensor(7),
     torch.tensor([1.5], dtype=torch.bfloat16), torch.tensor([math.nan, -0.0, math.inf])],
    ids=["0-d", "empty", "empty with shape", "bool", "0-d int", "bfloat16", "special values"],
)  # fmt: skip
def test_odd_tensors(tensor: Tensor) -> None:
    assert same({"x": tensor}, through_bytes({"x": tensor}))


def test_nan_payloads_are_kept() -> None:
    tensor = torch.tensor([0x7FC01234, -0x3FEDCC, 0x7F800001], dtype=torch.int32).view(torch.float32)
    assert torch.equal(through_bytes(tensor).view(torch.int32), tensor.view(torch.int32))


def test_the_state_is_not_changed_and_needs_no_grad() -> None:
    parameter = torch.nn.Parameter(torch.randn(2, 2))
    stored, _ = flatten_state({"p": parameter})
    assert not stored["p"].requires_grad
    assert parameter.requires_grad


@pytest.mark.parametrize(
    ("state", "path", "kind"),
    [
        ({"a": {"b": [1, {2}]}}, "a/b/1", "set"),
        ({"plan": {"rule": object()}}, "plan/rule", "object"),
        ({"when": 1 + 2j}, "when", "complex"),
        (b"bytes", "the state", "bytes"),
        ({"f": test_a_bare_tensor_is_a_state}, "f", "function"),
    ],
)
def test_everything_else_is_refused_by_its_path(state: Any, path: str, kind: str) -> None:
    with pytest.raises(ConfigError, match=rf"cannot store '{path}': it is a {kind}\."):
        flatten_state(state)


def test_keys_and_layouts_are_refused_by_their_path() -> None:
    with pytest.raises(ConfigError, match=r"cannot store 'a': its key \(1, 2\)"):
        flatten_state({"a": {(1, 2): 0}})
    with pytest.raises(ConfigError, match=r"cannot store 'a/b': its layout is torch.sparse_coo; make it dense"):
        flatten_state({"a": {"b": torch.eye(2).to_sparse()}})


@pytest.mark.parametrize(
    "text",
    ["", "{", "nonsense", '{"unknown":1}', '{"dict":[["a",{"what":2}]]}', '{"list":[{}]}', '{"dict":[1]}',
     '{"dict":{"a":1}}', '{"list":3}', '{"tensor":["x"]}', '{"dict":[[["k"],1]]}', "[1, 2]",
     '{"tensor":"flat","channels_last":true}'],
)  # fmt: skip
def test_unknown_text_is_a_format_error(text: str) -> None:
    with pytest.raises(FormatError):
        unflatten_state({"x": torch.zeros(1), "flat": torch.zeros(())}, text)


def test_a_missing_tensor_is_named() -> None:
    _, text = flatten_state({"model": {"weight": torch.zeros(2)}})
    assert json.loads(text)
    with pytest.raises(FormatError, match="'model/weight', which is not in the file"):
        unflatten_state({}, text)
