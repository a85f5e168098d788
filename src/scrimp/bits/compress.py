"""Let a model learn how many bits each of its channels is worth."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from scrimp.bits.channels.wire import graph_wiring
from scrimp.bits.choose import Protect, channel_dim_of, choose_layers, weight_of
from scrimp.bits.example import ExampleInputs, call_with, evaluating, num_samples_of
from scrimp.bits.quantize import bits_of_nothing
from scrimp.bits.quantizer import BitsRange, LayerFacts, Quantizer
from scrimp.bits.size_plan import note_slopes_
from scrimp.bits.wiring import set_wiring_
from scrimp.errors import ConfigError, NoEffectWarning

_ROOM = 4.0  # times the rms of fresh weights, which training doubles, and whose tails it makes longer
_LARGEST_STEP = 0.9  # times the rms: larger ones turn most weights into zeros


@dataclass(frozen=True)
class Compression:
    """What ``self_compress_`` did: the names of the layers that now learn their bits, and why others were left alone.

    ``num_weights`` of ``num_parameters`` of the model are quantised.
    """

    layers: tuple[str, ...]
    left_alone: Mapping[str, str]
    num_weights: int
    num_parameters: int


def self_compress_(
    model: nn.Module,
    example_inputs: ExampleInputs,
    *,
    bits: float = 8.0,
    quantizer: type[Quantizer] = BitsRange,
    integer_exponent: bool = False,
    protect: Protect = (),
    embeddings: bool = False,
    least_output_bits: float = 2.0,
) -> Compression:
    """Quantise the weights of linear layers and convolutions, with bits and an exponent that each channel learns.

    Weights become what ``scrimp.bits.quantize`` makes of them in every forward pass, by a parametrization of torch:
    ``layer.weight`` is quantised, ``layer.parametrizations.weight.original`` is what trains. Parameters stay the same
    objects; make the optimizer afterwards all the same, with ``scrimp.bits.param_groups``, since there are new ones.
    Biases, norms and activations stay as they are. With ``scrimp.size_penalty`` in the loss, bits fall where the model
    can spare them, some to zero; ``scrimp.remove_dead_channels_`` then takes those channels out.

    Left alone are: layers whose weight is frozen; what ``protect`` names; a weight that is also used by a layer of
    another kind (an embedding tied to the output); grouped transposed convolutions. Layers of one kind that share a
    weight share its bits.

    Args: model - changed in place. example_inputs - what the model is called with: a tensor, a tuple of positional or a
        mapping of keyword arguments; one forward pass in evaluation mode shows which layers are called, in which order
        and how often. bits - that every channel starts with; the exponent is such that its largest weight fits, with
        room to grow: the range is 4 times the channel's rms unless steps would be larger than that. Weights that
        training takes out of the range stop learning until the range has followed, which it does slowly.
        quantizer - ``BitsRange``, ``BitsExponent`` (the paper's parameters) or ``StepRange``. integer_exponent -
        scales are powers of two, for hardware that only shifts. protect - names of layers, also of modules that
        contain them, or a function of name and module. embeddings - take tables in, too. least_output_bits - the last
        layer keeps at least these, because a class whose weights vanish cannot be recognised.
    Raises: ConfigError - impossible values; a layer that is lazy, sparse, or parametrised already (weight norm); a name
        in ``protect`` that fits nothing; inputs that the model does not take. The model is then as before.
    Warns: NoEffectWarning - nothing to quantise.
    Source: Csefalvay and Imber, "Self-Compressing Neural Networks", arXiv 2301.13142; there depths leave the exponent
        alone, and all channels start at an exponent of -8, whatever their weights are.
    """
    nothing = bits_of_nothing(symmetric=quantizer.symmetric)
    if not (1 <= bits <= 16 and bits > nothing):
        raise ConfigError(
            f"self_compress_: bits is {bits}; channels start with 1 to 16 bits"
            + (f", and those of a {quantizer.__name__} with more than 1" if nothing else "")
        )
    if not 0 <= least_output_bits <= bits or 0 < least_output_bits <= nothing:
        raise ConfigError(
            f"self_compress_: least_output_bits is {least_output_bits}; it has to be above {nothing:g} and at most "
            f"bits, {bits:g}, or 0 for an output that may vanish"
        )
    chosen, left_alone = choose_layers(model, protect, embeddings=embeddings)
    num_positions = _observe(model, chosen, example_inputs)
    num_parameters = sum(p.numel() for p in model.parameters())
    order = [*num_positions, *(name for name in chosen if name not in num_positions)]
    last = next(reversed(num_positions), None)
    firsts = {id(weight_of(module)): name for name, module in reversed(chosen.items())}  # of those that share a weight
    sizes = [
        (weight_of(chosen[name]).numel(), weight_of(chosen[name]).shape[channel_dim_of(chosen[name])], name)
        for name in firsts.values()
    ]
    num_weights = sum(number for number, _, _ in sizes)
    num_operations = sum(number * num_positions.get(name, 1) for number, _, name in sizes)
    num_activations = sum(channels * num_positions.get(name, 1) for _, channels, name in sizes)
    made: dict[int, Quantizer] = {}
    for name, module in chosen.items():
        weight = weight_of(module)
        if id(weight) not in made:
            channel_dim = channel_dim_of(module)
            facts = LayerFacts(
                num_weights=weight.numel(), num_all_weights=num_weights, num_channels=weight.shape[channel_dim],
                num_positions=num_positions.get(name, 1), order=order.index(name),
                num_all_operations=num_operations, num_all_activations=num_activations,
            )  # fmt: skip
            made[id(weight)] = quantizer(
                *starting_values(
                    weight, channel_dim, bits, symmetric=quantizer.symmetric, whole=integer_exponent, room=_ROOM
                ),
                channel_dim=channel_dim, facts=facts, integer_exponent=integer_exponent,
                least_bits=least_output_bits if name == last else 0.0,
            )  # fmt: skip
        parametrize.register_parametrization(module, "weight", made[id(weight)])
    if not chosen:
        warnings.warn(
            f"self_compress_ found no layer to quantise in {type(model).__name__}", NoEffectWarning, stacklevel=2
        )
    set_wiring_(model, graph_wiring(model, example_inputs))
    note_slopes_(model)
    return Compression(tuple(sorted(chosen, key=order.index)), left_alone, num_weights, num_parameters)


def starting_values(
    weight: Tensor, channel_dim: int, bits: float, *, symmetric: bool = False, whole: bool = False, room: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Bits and the exponents with which the largest weight of each channel just fits into the largest code.

    With ``room`` the largest code is that many times the root mean square of the channel's weights, if that is more;
    less where steps would be as large as that mean. A channel of zeros takes the layer's largest weight; a layer of
    zeros, one over the root of the weights per channel.
    """
    dtype = torch.promote_types(weight.dtype, torch.float32)
    rows = weight.detach().to(dtype).movedim(channel_dim, 0).flatten(1)
    largest = rows.abs().amax(dim=1)
    usual = torch.where(largest.amax() > 0, largest.amax(), torch.full_like(largest[0], rows.shape[1] ** -0.5))
    largest = torch.where(largest > 0, largest, usual)
    greatest_code = max(2 ** (bits - 1) - 1, 1.0 if symmetric else 0.5)
    sizes = largest * (rows / largest[:, None]).square().mean(dim=1).sqrt()  # rms, of the largest floats as well
    roomy = min(room, _LARGEST_STEP * greatest_code) * sizes
    # a hair more, so that the division in the quantiser cannot round the largest weight out of the range
    fitting, roomy = (
        torch.log2(reach * (1 + 4 * torch.finfo(dtype).eps)) - math.log2(greatest_code) for reach in (largest, roomy)
    )
    if whole:  # nothing is clipped, and room makes no step coarser than it may be
        fitting, roomy = fitting.ceil(), roomy.floor()
    return torch.full_like(largest, bits), torch.maximum(fitting, roomy)


def _observe(model: nn.Module, layers: Mapping[str, nn.Module], example_inputs: ExampleInputs) -> dict[str, int]:
    """The layers in the order in which the example passes them, each with the positions where a sample applies it.

    One forward pass in evaluation mode, without gradients. Layers that are not called as modules are not there.
    """
    num_positions: dict[str, int] = {}
    num_samples = num_samples_of(example_inputs)
    handles = []
    for name, module in layers.items():

        def note(module: nn.Module, _inputs: Any, output: Any, name: str = name) -> None:
            channels = weight_of(module).shape[channel_dim_of(module)]
            positions = output.numel() // (channels * num_samples) if isinstance(output, Tensor) else 1
            num_positions[name] = num_positions.get(name, 0) + max(1, positions)

        handles.append(module.register_forward_hook(note))
    try:
        with evaluating(model), torch.no_grad():
            call_with(model, example_inputs)
    except Exception as error:
        raise ConfigError(
            f"self_compress_: the model does not take example_inputs ({type(error).__name__}: {error})"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return num_positions
