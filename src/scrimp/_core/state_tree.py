"""Nested state as flat named tensors and one JSON text, so that it can be stored without pickle.

A state is what ``state_dict()`` of models, optimizers, schedulers and scrimp's own objects return: dicts (with string,
integer or boolean keys), lists, tuples, tensors, numbers, strings, ``None``. Everything else is refused by name.
"""

import itertools
import json
from collections.abc import Container, Mapping
from typing import Any

import torch
from torch import Tensor

from scrimp.errors import ConfigError, FormatError

_SCALARS = (bool, int, float, str, type(None))


def flatten_state(state: Any) -> tuple[dict[str, Tensor], str]:
    """Split ``state`` into CPU tensors by path (``model/conv.weight``) and a JSON text of how they hang together.

    A tensor that occurs twice (tied weights) is stored once. Strided views are made dense; whether a 4-D or 5-D tensor
    was channels_last is kept, because an optimizer whose moments lie differently from its weights takes slow paths.

    Raises: ConfigError - a value that is none of the above; the message names its path.
    Cost: one copy of every tensor that is not on the CPU and dense.
    """
    tensors: dict[str, Tensor] = {}
    seen: dict[tuple[object, ...], str] = {}
    storages: set[int] = set()

    def encode(value: Any, path: str) -> Any:
        if isinstance(value, Tensor):
            return encode_tensor(value, path)
        if isinstance(value, _SCALARS):
            return value
        if isinstance(value, Mapping):
            return {
                "dict": [[encode_key(k, path), encode(v, f"{path}/{k}" if path else str(k))] for k, v in value.items()]
            }
        if isinstance(value, list | tuple):
            kind = "list" if isinstance(value, list) else "tuple"
            return {kind: [encode(v, f"{path}/{i}" if path else str(i)) for i, v in enumerate(value)]}
        raise ConfigError(
            f"cannot store {path or 'the state'!r}: it is a {type(value).__name__}. "
            "A state may hold dicts, lists, tuples, tensors, numbers, strings and None."
        )

    def encode_key(key: Any, path: str) -> Any:
        if isinstance(key, bool | int | str):
            return key
        raise ConfigError(f"cannot store {path!r}: its key {key!r} is neither a string nor an integer")

    def encode_tensor(tensor: Tensor, path: str) -> dict[str, Any]:
        if tensor.layout is not torch.strided:
            raise ConfigError(
                f"cannot store {path!r}: its layout is {tensor.layout}; make it dense first (.to_dense())"
            )
        identity = (
            tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride(),
            tensor.is_conj(), tensor.is_neg(),
        ) if tensor.numel() else (object(),)  # fmt: skip
        channels_last = _is_channels_last(tensor)
        if identity not in seen:
            dense = tensor.detach().to("cpu").resolve_conj().resolve_neg()
            if channels_last:
                dense = dense.movedim(1, -1)
            dense = dense.contiguous()
            storage = dense.untyped_storage()
            if storage.nbytes() != dense.numel() * dense.element_size() or storage.data_ptr() in storages:
                dense = dense.clone()  # a part or another view of something: do not drag that along
            if dense.numel():
                storages.add(dense.untyped_storage().data_ptr())
            name = _unused(path, tensors)
            tensors[name] = dense
            seen[identity] = name
        described: dict[str, Any] = {"tensor": seen[identity]}
        if channels_last:
            described["channels_last"] = True
        return described

    tree = encode(state, "")
    return tensors, json.dumps(tree, separators=(",", ":"))


def unflatten_state(tensors: Mapping[str, Tensor], text: str) -> Any:
    """The inverse of ``flatten_state``. Tensors are not copied.

    Raises: FormatError - the text is not ours, or names a tensor that is missing.
    """

    def decode(value: Any) -> Any:
        if isinstance(value, _SCALARS):
            return value
        if isinstance(value, dict) and "tensor" in value:
            tensor = tensors[value["tensor"]]
            return tensor.movedim(-1, 1) if value.get("channels_last") else tensor
        if isinstance(value, dict) and "dict" in value:
            return {key: decode(item) for key, item in value["dict"]}
        if isinstance(value, dict) and "list" in value:
            return [decode(item) for item in value["list"]]
        if isinstance(value, dict) and "tuple" in value:
            return tuple(decode(item) for item in value["tuple"])
        raise FormatError(f"unknown entry in a stored state: {str(value)[:80]!r}")

    try:
        return decode(json.loads(text))
    except FormatError:
        raise
    except json.JSONDecodeError as error:
        raise FormatError(f"a stored state is not valid JSON ({error})") from error
    except KeyError as error:
        raise FormatError(f"a stored state names the tensor {error.args[0]!r}, which is not in the file") from error
    except (TypeError, ValueError, IndexError, RecursionError) as error:
        raise FormatError(f"a stored state is not of the form that scrimp writes ({error})") from error


def _unused(path: str, taken: Container[str]) -> str:
    """``path``, made unique: keys may hold slashes, and 1 and "1" are two keys."""
    names = (path if number == 1 else f"{path}#{number}" for number in itertools.count(1))
    return next(name for name in names if name not in taken)


def _is_channels_last(tensor: Tensor) -> bool:
    if tensor.dim() == 4:
        return not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)
    if tensor.dim() == 5:
        return not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last_3d)
    return False
