"""What a packed file is made of: codes and scales of quantised layers, and the other tensors of the plain model."""

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from scrimp._core.structure import Structure, read_structure
from scrimp.bits.layers import QuantizedLayer, quantized_layers
from scrimp.errors import ConfigError

_ORIGINAL = ".parametrizations.weight.original"
_QUANTIZER = ".parametrizations.weight.0."


@dataclass(frozen=True)
class PackedLayer:
    """A quantised weight by its name in the plain model: codes with channels first, and a scale for each channel."""

    name: str
    channel_dim: int
    shape: tuple[int, ...]
    codes: NDArray[np.int64]  # (channels, weights of a channel)
    scales: NDArray[np.float32]

    def weight(self) -> Tensor:
        """The weight in float32: codes times scales, the numbers that training computed with (unless a norm is in)."""
        rows = torch.from_numpy(self.codes.astype(np.float32) * self.scales[:, None])
        first = [self.shape[self.channel_dim], *self.shape[: self.channel_dim], *self.shape[self.channel_dim + 1 :]]
        return rows.reshape(first).movedim(0, self.channel_dim).contiguous()


@dataclass(frozen=True)
class FoldedNorm:
    """A batch norm of which only weight and bias are left, or only the bias if its scale is in the layer before it.

    In the plain model it has mean 0 and variance ``1 - eps``, and weight 1 unless that is stored. ``layer_bias`` names
    the bias of the layer before it, if there is one, which is zero then.
    """

    name: str
    eps: float
    layer_bias: str | None


@dataclass(frozen=True)
class Contents:
    """A model taken apart. ``tensors`` has every tensor that is stored as it is; ``tied`` further names of such.

    ``program`` is what it computes, if that is to be stored (``program.py``).
    """

    structure: Structure
    layers: tuple[PackedLayer, ...]
    norms: tuple[FoldedNorm, ...]
    tensors: Mapping[str, Tensor]
    tied: Mapping[str, str]
    program: Mapping[str, Any] | None = None

    def state_dict(self) -> dict[str, Tensor]:
        """The state of the plain model."""
        state = dict(self.tensors) | {layer.name: layer.weight() for layer in self.layers}
        for norm in self.norms:
            size = len(state[f"{norm.name}.bias"])
            state.setdefault(f"{norm.name}.weight", torch.ones(size))
            state[f"{norm.name}.running_mean"] = torch.zeros(size)
            state[f"{norm.name}.running_var"] = torch.full((size,), 1.0 - norm.eps)
            state[f"{norm.name}.num_batches_tracked"] = torch.tensor(0)
            if norm.layer_bias is not None:
                state[norm.layer_bias] = torch.zeros(size)
        return state | {name: state[first] for name, first in self.tied.items()}


def plain_name(name: str) -> str | None:
    """The name that a tensor of a compressed model has in the plain one; None for what only the quantiser has."""
    inner = f".{name}"
    if _QUANTIZER in inner:
        return None
    return inner.replace(_ORIGINAL, ".weight")[1:]


def plain_structure(model: nn.Module) -> Structure:
    """The structure of ``model`` without its quantisers."""
    structure = read_structure(model)
    shapes = {plain: shape for name, shape in structure.shapes.items() if (plain := plain_name(name)) is not None}
    return dataclasses.replace(structure, shapes=shapes)


def take_apart(model: nn.Module, *, fold_norms: bool, live_inputs: Mapping[str, Tensor] | None = None) -> Contents:
    """Codes, scales and the rest of ``model``, as CPU tensors.

    ``fold_norms`` takes batch norms that directly follow a quantised layer into its scales, as they are in evaluation,
    and statistics of other batch norms into their weights and biases, if anything is quantised.
    ``live_inputs`` leaves other inputs of layers without groups out, to see what a removal would leave.
    Raises: ConfigError - state that is no tensor, or a tensor that is not dense.
    """
    quantized = quantized_layers(model)
    state = model.state_dict(keep_vars=True)
    aliases: dict[int, str] = {}
    tensors: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    by_weight = {layer.weight_name: layer for layer in quantized.values()}
    weights: dict[str, QuantizedLayer] = {}
    for name, value in state.items():
        plain = plain_name(name)
        if plain is None:
            continue
        if not isinstance(value, Tensor) or value.layout is not torch.strided:
            raise ConfigError(f"cannot pack {name!r}: only dense tensors are packed, and it is {type(value).__name__}")
        if id(value) in aliases:
            tied[plain] = aliases[id(value)]
            continue
        aliases[id(value)] = plain
        if name in by_weight:
            weights[plain] = by_weight[name]
        else:
            tensors[plain] = value.detach().to("cpu")
    names = {module: name for name, module in model.named_modules()}
    layers, norms = [], []
    for plain, layer in weights.items():
        rows = layer.codes().movedim(layer.channel_dim, 0).cpu()
        if live_inputs is not None and rows.shape[1] == len(live_inputs[layer.name]):
            rows = rows[:, live_inputs[layer.name]]
        codes = rows.flatten(1).numpy().astype(np.int64)
        scales = layer.scales().double().cpu()
        norm = _norm_after(layer) if fold_norms else None
        shared = {*tied, *tied.values()}.intersection((plain, f"{layer.name}.bias"))
        if norm is not None and (shared or not _is_foldable(norm, names.get(norm), tensors, tied)):
            norm = None
        if norm is not None:
            layer_bias = layer.module.bias if isinstance(layer.module.bias, Tensor) else None
            scales = scales * _fold(norm, names[norm], layer_bias, tensors)
            del tensors[f"{names[norm]}.weight"]
            bias = f"{layer.name}.bias" if layer_bias is not None else None
            tensors.pop(bias or "", None)
            norms.append(FoldedNorm(names[norm], norm.eps, bias))
        shape = tuple(layer.raw_weight.shape)
        layers.append(PackedLayer(plain, layer.channel_dim, shape, codes, scales.float().numpy()))
    for module, name in names.items() if layers and fold_norms else ():
        if isinstance(module, _BatchNorm) and _is_foldable(module, name, tensors, tied):
            tensors[f"{name}.weight"] = _fold(module, name, None, tensors).float()
            norms.append(FoldedNorm(name, module.eps, None))
    return Contents(plain_structure(model), tuple(layers), tuple(norms), tensors, tied)


def _norm_after(layer: QuantizedLayer) -> _BatchNorm | None:
    norm = layer.quantizer.wiring.norms.get(layer.quantizer.name) if layer.quantizer.wiring is not None else None
    return norm if isinstance(norm, _BatchNorm) else None


def _is_foldable(norm: _BatchNorm, name: str | None, tensors: Mapping[str, Tensor], tied: Mapping[str, str]) -> bool:
    """Whether the norm has all its tensors, not folded yet, for itself, in float32, and computes what a norm does."""
    if not norm.affine or norm.running_var is None:
        return False
    parts = [f"{name}.{part}" for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")]
    if not tensors.keys() >= set(parts) or not set(parts).isdisjoint(tied.values()):
        return False
    return all(tensors[part].dtype is torch.float32 for part in parts[:-1]) and _folds(norm)


def _folds(norm: _BatchNorm) -> bool:
    """Whether evaluation gives the same after folding, as a subclass with a forward of its own may not."""
    if type(norm).forward in (_BatchNorm.forward, nn.SyncBatchNorm.forward):
        return True
    whole = copy.deepcopy(norm).cpu().eval()
    mean, variance = whole.running_mean, whole.running_var
    assert mean is not None
    assert variance is not None
    tensors: dict[str, Tensor] = {}
    gain = _fold(whole, "", None, tensors)
    folded = copy.deepcopy(whole)
    new = {
        "weight": gain,
        "bias": tensors[".bias"],
        "running_mean": mean * 0,
        "running_var": variance * 0 + 1 - norm.eps,
    }
    folded.load_state_dict(new, strict=False)
    draws = torch.Generator().manual_seed(0)
    for dims in ((), (3,), (3, 3), (2, 3, 3)):
        beside = (-1, *(1 for _ in dims))
        drawn = torch.randn(4, norm.num_features, *dims, generator=draws)
        x = drawn * variance.sqrt().view(beside) + mean.view(beside)
        try:
            with torch.no_grad():
                expected, given = whole(x), folded(x)
        except (ValueError, RuntimeError):  # made for other dimensions
            continue
        return torch.allclose(given, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    return False


def _fold(norm: _BatchNorm, name: str, layer_bias: Tensor | None, tensors: dict[str, Tensor]) -> Tensor:
    """Replace the norm's tensors but its weight by its new bias; what the weight would be is returned."""
    assert norm.running_var is not None
    assert norm.running_mean is not None
    gain = (norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()).detach().cpu()
    mean = norm.running_mean.double().cpu()
    if layer_bias is not None:
        mean = mean - layer_bias.detach().double().cpu()
    tensors[f"{name}.bias"] = (norm.bias.detach().double().cpu() - mean * gain).float()
    for gone in ("running_mean", "running_var", "num_batches_tracked"):
        tensors.pop(f"{name}.{gone}", None)
    return gain
