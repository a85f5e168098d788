"""A compressed model as a file that is as small as its bits say, and back."""

import dataclasses
import math
import os
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from scrimp._core.atomic_files import atomic_write
from scrimp._core.structure import Structure, apply_structure_, read_structure
from scrimp.bits import packed_file
from scrimp.bits.channels.watch import example_of
from scrimp.bits.contents import Contents, take_apart
from scrimp.bits.layers import quantized_layers, unique_layers
from scrimp.bits.plain import live_inputs, plain_copy
from scrimp.bits.program import Program, describe
from scrimp.bits.removal import without_ghosts
from scrimp.errors import ConfigError, StructureError


@dataclass(frozen=True)
class LayerSize:
    """What one quantised layer takes. ``code_bits`` are those of all its weights in the packed file.

    ``original_channels`` and ``original_weights`` are those before anything was removed; layers that were deleted are
    not listed, but count in the original weights of the whole. ``zero_channels`` have nothing but zeros and are still
    there. ``mean_bits`` is the mean of the learned depths, attainable or not.
    """

    name: str
    num_channels: int
    zero_channels: int
    original_channels: int
    num_weights: int
    original_weights: int
    mean_bits: float
    code_bits: float


@dataclass(frozen=True)
class SizeReport:
    """The size of a model, in bytes that a file really has.

    ``packed_bytes`` is the size of the file that ``scrimp.pack`` writes with the same options: codes, scales, other
    tensors (biases, norms, layers that are not quantised), header. ``float32_bytes`` is what the parameters and buffers
    of the present structure take in float32, and ``original_bytes`` adds the weights that were removed.
    """

    packed_bytes: int
    code_bytes: int
    scale_bytes: int
    tensor_bytes: int
    header_bytes: int
    float32_bytes: int
    original_bytes: int
    num_weights: int
    original_weights: int
    layers: tuple[LayerSize, ...]

    @property
    def weights_kept_fraction(self) -> float:
        """Quantised weights that are still there, of those at the start."""
        return self.num_weights / max(1, self.original_weights)

    @property
    def bits_per_weight(self) -> float:
        """Bits in the file, everything counted, for each quantised weight that is left."""
        return 8 * self.packed_bytes / max(1, self.num_weights)


def size_report(
    model: nn.Module,
    *,
    fold_norms: bool = True,
    half: bool = False,
    graph: bool = False,
    metadata: Mapping[str, Any] | None = None,
) -> SizeReport:
    """What ``model`` takes when it is packed, to the byte, and where. Dead channels that can go do not count.

    Cost: that of ``pack`` without writing; weights are copied to the CPU and coded, some three seconds per ten million.
    Raises: ConfigError - as ``pack``.
    """
    model = without_ghosts(model)
    contents = _contents(model, fold_norms=fold_norms, graph=graph)
    return _report(model, contents, packed_file.write(contents, metadata or {}, half=half))


def packed_bytes_estimate(model: nn.Module, *, metadata: Mapping[str, Any] | None = None) -> int:
    """``size_report(model).packed_bytes`` as it will be without the inputs that dead channels feed, quickly.

    Within a percent of the size after ``scrimp.remove_dead_channels_``, for a third of the time. Host sync.
    """
    contents = take_apart(model, fold_norms=True, live_inputs=live_inputs(model))
    return len(packed_file.write(contents, metadata or {}, half=False, with_data=False).data)


def pack(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    fold_norms: bool = True,
    half: bool = False,
    graph: bool = False,
    metadata: Mapping[str, Any] | None = None,
) -> SizeReport:
    """Write ``model`` to a file: codes at the bits that they are worth, scales, and what else it takes to compute.

    The file holds the plain model: names, shapes and values as after removing the quantisers, so that ``unpack`` needs
    only a fresh instance of the original, or not even that if the file holds the ``graph``. Codes are range coded with
    the frequencies of channels of their kind, which takes a few percent less than whole bits. ``FORMAT.md`` beside this
    module describes every byte. Dead channels that can go are left out, whether they were removed or not.

    Args: path - replaced atomically. fold_norms - a batch norm that directly follows a quantised layer (and nothing
        else reads that layer) is taken into its scales as evaluation computes it, and of other batch norms weight and
        bias alone are kept, if they are float32 and their own; the unpacked model then computes the same to rounding,
        and is not for training on, nor for code that reads the statistics of its norms. half -
        scales, biases and whatever else is float32 and not codes are stored in 16 bits, which changes logits by about a
        thousandth. graph - also write down what the model computes, as ``torch.export`` sees it in evaluation mode; a
        few kilobytes. metadata - JSON values to find in the file again (``read_metadata``).
    Returns: the report of what was written; ``packed_bytes`` is the size of the file.
    Raises: ConfigError - tensors that are not dense, state that is no tensor, metadata that is not JSON, a graph with
        more in it than operations of torch. ExportError - torch cannot follow the model for its graph. OSError.
    Cost: about three seconds per ten million weights on one core.
    """
    model = without_ghosts(model)
    contents = _contents(model, fold_norms=fold_norms, graph=graph)
    packed = packed_file.write(contents, metadata or {}, half=half)
    with atomic_write(path) as file:
        file.write(packed.data)
    return _report(model, contents, packed)


def unpack(path: str | os.PathLike[str], model: nn.Module | None = None) -> nn.Module:
    """Give ``model``, a fresh plain instance of what was packed, the structure and the values of the file.

    It is changed in place and returned, in evaluation mode: parameters have fewer channels where some were removed,
    weights are codes times scales. Without ``model`` one is made of the graph in the file (``pack(..., graph=True)``),
    with the same names of parameters; it is for evaluation, on inputs like those that it was packed with.

    Raises: FormatError - not a packed model, of another version, truncated or altered. StructureError - another model,
        or one that is smaller somewhere. ConfigError - a model that is itself compressed, or no graph in the file.
        ``model`` is unchanged then.
    Cost: about two seconds per ten million weights on one core.
    """
    contents, _ = packed_file.read(Path(path).read_bytes(), os.fspath(path))
    if model is not None:
        return fill_(model, contents)
    if contents.program is None:
        raise ConfigError(
            f"{os.fspath(path)} holds no graph; give unpack a fresh instance of the model to fill, unpack(path, "
            "model), or pack it with graph=True"
        )
    return Program(contents.program, contents.state_dict()).eval()


def _contents(model: nn.Module, *, fold_norms: bool, graph: bool) -> Contents:
    contents = take_apart(model, fold_norms=fold_norms)
    if not graph:
        return contents
    try:
        args, kwargs = example_of(model)
    except KeyError:
        raise ConfigError("pack: graph=True needs an example of the inputs, as self_compress_ remembers it") from None
    return dataclasses.replace(contents, program=describe(plain_copy(model).cpu().eval(), args, kwargs))


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The metadata of a packed file. Raises: FormatError, as ``unpack``."""
    header = packed_file.read_header(Path(path).read_bytes(), os.fspath(path))
    metadata: dict[str, Any] = header["metadata"]
    return metadata


def read_packed(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """The state of the plain model in a packed file, by name: what ``unpack`` loads. Raises: FormatError."""
    contents, _ = packed_file.read(Path(path).read_bytes(), os.fspath(path))
    return contents.state_dict()


@dataclass(frozen=True)
class PackedLayerInfo:
    """A quantised weight of a packed file. ``code_bits`` are those of all its codes."""

    name: str
    shape: tuple[int, ...]
    num_channels: int
    zero_channels: int
    least_code: int
    greatest_code: int
    code_bits: float

    @property
    def bits_per_weight(self) -> float:
        """Bits of codes for each weight: without scales, and the tables that all layers share."""
        return self.code_bits / math.prod(self.shape)


@dataclass(frozen=True)
class PackedInfo:
    """What is in a packed file. The bytes of its parts add up to ``packed_bytes``."""

    version: int
    packed_bytes: int
    code_bytes: int
    scale_bytes: int
    tensor_bytes: int
    header_bytes: int
    layers: tuple[PackedLayerInfo, ...]
    num_weights: int
    num_other_values: int
    metadata: Mapping[str, Any]


def inspect_packed(path: str | os.PathLike[str]) -> PackedInfo:
    """What a packed file consists of; the whole file is read and checked. Raises: FormatError, as ``unpack``."""
    data = Path(path).read_bytes()
    contents, metadata = packed_file.read(data, os.fspath(path))
    header = packed_file.read_header(data, os.fspath(path))
    code_bits = packed_file.code_bits(header, contents)
    layers = tuple(
        PackedLayerInfo(
            one.name, one.shape, num_channels=len(one.codes), zero_channels=int((~one.codes.any(axis=1)).sum()),
            least_code=int(one.codes.min()), greatest_code=int(one.codes.max()), code_bits=code_bits[one.name],
        )
        for one in contents.layers
    )  # fmt: skip
    others = sum(tensor.numel() for tensor in contents.tensors.values())
    num_weights = sum(one.codes.size for one in contents.layers)
    parts = header["sections"]
    return PackedInfo(
        packed_file.VERSION, len(data), code_bytes=parts[0], scale_bytes=parts[1], tensor_bytes=parts[2],
        header_bytes=len(data) - sum(parts), layers=layers, num_weights=num_weights, num_other_values=others,
        metadata=metadata,
    )  # fmt: skip


def fill_(model: nn.Module, contents: Contents) -> nn.Module:
    """``model`` with the structure and the values of ``contents``, in evaluation mode."""
    if quantized_layers(model):
        raise ConfigError("unpack needs a plain model; give it a fresh instance before self_compress_")
    state = contents.state_dict()
    wanted = {
        name: tensor.shape
        for name, tensor in model.state_dict().items()
        if isinstance(tensor, torch.Tensor) and not contents.structure.is_gone(name)
    }
    if unlike := sorted(wanted.keys() ^ state.keys()):
        where = "the file" if unlike[0] in state else "the model"
        raise StructureError(f"{unlike[0]!r} is only in {where}: the file is of another model")
    apply_structure_(model, _present_names(contents.structure, model))
    loaded = OrderedDict(state)
    # with the versions of its modules, or a norm without a counter would be given one
    loaded._metadata = model.state_dict()._metadata  # type: ignore[attr-defined]
    model.load_state_dict(loaded)
    return model.eval()


def _present_names(structure: Structure, model: nn.Module) -> Structure:
    """The stored structure without buffers that the file does not hold and the model has not."""
    present = read_structure(model).shapes
    shapes = {name: shape for name, shape in structure.shapes.items() if name in present}
    return dataclasses.replace(structure, shapes=shapes)


def _report(model: nn.Module, contents: Contents, packed: packed_file.PackedBytes) -> SizeReport:
    unique = unique_layers(model)
    layers = []
    for layer, stored in zip(unique, contents.layers, strict=True):
        facts = layer.quantizer.facts
        layers.append(
            LayerSize(
                name=layer.name, num_channels=len(stored.codes), zero_channels=int((~stored.codes.any(axis=1)).sum()),
                original_channels=facts.num_channels, num_weights=stored.codes.size, original_weights=facts.num_weights,
                mean_bits=float(layer.bits.mean()), code_bits=math.fsum(packed.channel_bits[stored.name]),
            )
        )  # fmt: skip
    own = {id(t): t for layer in unique for t in layer.quantizer.parameters()}
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}
    float32_bytes = 4 * sum(t.numel() for key, t in tensors.items() if key not in own and t.is_floating_point())
    num_weights = sum(one.num_weights for one in layers)
    original = unique[0].quantizer.facts.num_all_weights if unique else 0
    return SizeReport(
        packed_bytes=len(packed.data), code_bytes=packed.code_bytes, scale_bytes=packed.scale_bytes,
        tensor_bytes=packed.tensor_bytes, header_bytes=packed.header_bytes, float32_bytes=float32_bytes,
        original_bytes=float32_bytes + 4 * (original - num_weights), num_weights=num_weights,
        original_weights=original, layers=tuple(layers),
    )  # fmt: skip
