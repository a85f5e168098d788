"""Weights of an ONNX graph as integers with a scale for each channel."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scrimp.bits.layers import QuantizedLayer
from scrimp.errors import ConfigError

_SUFFIX = "_codes"


def store_codes(path: Path, layers: Mapping[str, QuantizedLayer]) -> dict[str, tuple[str, NDArray[np.int32]]]:
    """Replace the float32 weights of ``layers`` in the file by codes and DequantizeLinear.

    Returns: by the name of the stored codes, their type and their values.

    A weight is found by its values, as it is or transposed, also when the exporter has multiplied channels with the
    scale of a norm. Codes take 4 bits where all those of the tensor fit (int4, or uint4 if none is negative), else 8,
    else 16 (opset 21). Raises: ConfigError - more than 16 bits.
    """
    import onnx  # noqa: PLC0415
    from onnx import helper, numpy_helper  # noqa: PLC0415

    proto = onnx.load(path)
    graph = proto.graph
    nodes: list[Any] = []
    stored: dict[str, tuple[str, NDArray[np.int32]]] = {}
    for initializer in list(graph.initializer):
        if initializer.data_type != onnx.TensorProto.FLOAT or len(initializer.dims) < 2:
            continue
        found = _find(numpy_helper.to_array(initializer), layers)
        if found is None:
            continue
        codes, scales, axis = found
        name = initializer.name
        kind = _smallest_type(codes, name)
        stored[f"{name}{_SUFFIX}"] = kind, codes
        data = _packed(codes) if kind.endswith("int4") else codes.astype(kind).tobytes()
        graph.initializer.remove(initializer)
        graph.initializer.extend([
            helper.make_tensor(
                f"{name}{_SUFFIX}", getattr(onnx.TensorProto, kind.upper()), codes.shape, data, raw=True
            ),
            numpy_helper.from_array(scales, f"{name}_scales"),
        ])  # fmt: skip
        inputs = [f"{name}{_SUFFIX}", f"{name}_scales"]
        nodes.append(helper.make_node("DequantizeLinear", inputs, [name], f"{name}_weight", axis=axis))
    for node in reversed(nodes):
        graph.node.insert(0, node)
    for opset in proto.opset_import:
        if opset.domain in ("", "ai.onnx"):
            opset.version = max(opset.version, 21)
    proto.ir_version = max(proto.ir_version, 10)
    onnx.checker.check_model(proto)
    onnx.save(proto, path)
    return stored


_TYPES = {"int4": (-8, 7), "uint4": (0, 15), "int8": (-128, 127), "int16": (-(1 << 15), (1 << 15) - 1)}


def _smallest_type(codes: NDArray[np.int32], name: str) -> str:
    """The first of ``_TYPES`` that holds ``codes``. Raises: ConfigError - none does."""
    for kind, (least, most) in _TYPES.items():
        if codes.min() >= least and codes.max() <= most:
            return kind
    raise ConfigError(
        f"the codes of {name!r} go from {codes.min()} to {codes.max()}, more than the 16 bits that are written here; "
        "export it as float32 (`onnx`), or train it to fewer bits"
    )


def _packed(codes: NDArray[np.int32]) -> bytes:
    """Two codes a byte, the first one in the lower half."""
    flat = np.append(codes.reshape(-1), [0] * (codes.size % 2)).astype(np.uint8) & 15
    return bytes(flat[::2] | flat[1::2] << 4)


def _find(
    values: NDArray[np.float32], layers: Mapping[str, QuantizedLayer]
) -> tuple[NDArray[np.int32], NDArray[np.float32], int] | None:
    """Codes, scales and the dimension of channels of the layer whose weight this is, perhaps with a norm taken in."""
    for layer in layers.values():
        codes, dim = layer.codes().cpu().numpy(), layer.channel_dim
        for turned, axis in ((codes, dim), (codes.T, 1 - dim)) if codes.ndim == 2 else ((codes, dim),):
            if turned.shape != values.shape:
                continue
            rows = np.moveaxis(turned, axis, 0).reshape(turned.shape[axis], -1)
            wanted = np.moveaxis(values, axis, 0).reshape(turned.shape[axis], -1)
            largest = np.abs(rows).argmax(axis=1)
            at = np.arange(len(rows)), largest
            scales = (wanted[at] / np.where(rows[at] == 0, 1, rows[at])).astype(np.float32)
            error = np.abs(rows * scales[:, None] - wanted).max()
            if error <= 1e-6 * max(float(np.abs(wanted).max()), 1e-30):
                return np.ascontiguousarray(turned), scales, axis
    return None
