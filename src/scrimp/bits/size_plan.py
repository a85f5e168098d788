"""The size of a model as a weighted sum of its bits, with the weights from which channels are alive."""

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import geometric_mean

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from scrimp.bits.layers import QuantizedLayer, unique_layers
from scrimp.bits.wiring import Wiring, num_inputs_and_outputs
from scrimp.errors import StructureError


class Objective(enum.Enum):
    """What ``scrimp.size_penalty`` counts.

    ``BITS`` of the weights, ``OPERATIONS`` (bits times the positions at which a sample uses them), or ``ACTIVATIONS``
    (bits times the positions of each output channel, so that channels vanish where images are large).
    """

    BITS = "bits"
    OPERATIONS = "operations"
    ACTIVATIONS = "activations"


@dataclass(frozen=True)
class SizePlan:
    """Index arithmetic over all channels of all quantised layers, laid end to end, for one structure of a model.

    A slot is a layer's group of channels. Counts are integers, so that sums do not depend on their order.
    """

    layers: tuple[QuantizedLayer, ...]
    signature: tuple[object, ...]
    original_size: int  # the objective of one bit per channel before anything was removed, inputs alone
    channel_weights: Int64[Tensor, " channels"]
    channel_classes: Int64[Tensor, " channels"]
    channel_slots: Int64[Tensor, " channels"]
    input_weights: Int64[Tensor, " inputs"]
    input_classes: Int64[Tensor, " inputs"]
    input_slots: Int64[Tensor, " inputs"]
    is_external: Bool[Tensor, " classes"]
    num_slots: int
    counts_weights: bool
    constants: tuple[nn.Parameter, ...]
    constant_channels: Int64[Tensor, " constants"]
    is_hinge: Bool[Tensor, " constants"]

    def prices(self, is_live: Bool[Tensor, " channels"]) -> Float[Tensor, " channels"]:
        """How much the objective falls for each bit that a channel loses.

        A bit of a channel is paid once for each of its weights that reads a live input, and once for each weight of
        live channels of later layers that reads the channel, shared among the layers that add up to it.
        """
        if not self.counts_weights:
            return self.channel_weights.float()
        live = is_live.long()
        num_classes = len(self.is_external)
        live_of_class = live.new_zeros(num_classes).index_add(0, self.channel_classes, live)
        producers = live.new_zeros(num_classes).index_add(0, self.channel_classes, torch.ones_like(live))
        input_is_live = ((live_of_class > 0) | self.is_external)[self.input_classes].long()
        inputs_of_slot = live.new_zeros(self.num_slots).index_add(0, self.input_slots, input_is_live)
        outputs_of_slot = live.new_zeros(self.num_slots).index_add(0, self.channel_slots, live)
        reading = self.input_weights * outputs_of_slot[self.input_slots]
        reading_of_class = live.new_zeros(num_classes).index_add(0, self.input_classes, reading)
        own = self.channel_weights * inputs_of_slot[self.channel_slots]
        return own + reading_of_class[self.channel_classes] / producers[self.channel_classes]


def size_plan(model: nn.Module, objective: Objective = Objective.BITS) -> SizePlan | None:
    """The plan for the model's present structure, kept between calls; ``None`` when nothing is quantised."""
    layers = unique_layers(model)
    if not layers:
        return None
    wiring = layers[0].quantizer.wiring
    assert wiring is not None
    device = layers[0].raw_weight.device
    signature = (id(wiring), objective, device, *(tuple(layer.raw_weight.shape) for layer in layers))
    plan = wiring.plans.get(objective)
    if plan is None or plan.signature != signature or any(a != b for a, b in zip(plan.layers, layers, strict=True)):
        plan = _make_plan(layers, wiring, objective, signature, device)
        wiring.plans[objective] = plan
    return plan


def note_slopes_(model: nn.Module) -> None:
    """Note in each quantiser what a bit of one of its channels adds to the penalty, on average, at the start.

    Also the geometric mean of these over the layers.
    """
    for objective in Objective:
        plan = size_plan(model, objective)
        if plan is None:
            return
        sizes = [len(layer.bits) for layer in plan.layers]
        prices = plan.prices(torch.ones_like(plan.channel_weights, dtype=torch.bool))
        slopes = [float(mine.mean()) / plan.original_size for mine in prices.split(sizes)]
        usual = geometric_mean(slopes)
        for layer, slope in zip(plan.layers, slopes, strict=True):
            layer.quantizer.slopes[objective], layer.quantizer.usual_slopes[objective] = slope, usual


def _make_plan(
    layers: tuple[QuantizedLayer, ...],
    wiring: Wiring,
    objective: Objective,
    signature: tuple[object, ...],
    device: torch.device,
) -> SizePlan:
    channel_parts: list[tuple[Tensor, Tensor, Tensor]] = []
    input_parts: list[tuple[Tensor, Tensor, Tensor]] = []
    starts: dict[str, int] = {}
    num_channels = num_slots = 0
    facts = layers[0].quantizer.facts
    original_size = {
        Objective.BITS: facts.num_all_weights,
        Objective.OPERATIONS: facts.num_all_operations,
        Objective.ACTIVATIONS: facts.num_all_activations,
    }[objective]
    for layer in layers:
        facts, name = layer.quantizer.facts, layer.quantizer.name
        num_inputs, num_outputs = num_inputs_and_outputs(layer)
        wired = (len(wiring.inputs[name]), len(wiring.outputs[name]))
        if wired != (num_inputs, num_outputs):
            raise StructureError(
                f"{name} takes {num_inputs} channels and gives {num_outputs}, its wiring {wired[0]} and {wired[1]}: "
                "the model was given another structure. Follow that by bits.set_wiring_(model, "
                "bits.graph_wiring(model, example_inputs))"
            )
        groups: int = getattr(layer.module, "groups", 1)
        per_pair = layer.raw_weight.numel() * groups // (num_inputs * num_outputs)
        match objective:
            case Objective.BITS:
                price = per_pair
            case Objective.OPERATIONS:
                price = per_pair * facts.num_positions
            case Objective.ACTIVATIONS:
                price = facts.num_positions
        slots = torch.arange(num_slots, num_slots + groups)
        for parts, classes in ((channel_parts, wiring.outputs[name]), (input_parts, wiring.inputs[name])):
            repeated = slots.repeat_interleave(len(classes) // groups)
            parts.append((torch.full_like(classes, price), classes, repeated))
        starts[name] = num_channels
        num_channels, num_slots = num_channels + num_outputs, num_slots + groups
    constants = [constant for constant in wiring.constants if constant.layer in starts]
    positions = [torch.arange(len(one.parameter)) + starts[one.layer] for one in constants]
    hinges = [torch.full((len(one.parameter),), one.is_free_below_zero) for one in constants]

    def joined(parts: Iterable[Tensor], dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.cat([torch.zeros(0, dtype=dtype), *parts]).to(device)

    channels, inputs = list(zip(*channel_parts, strict=True)), list(zip(*input_parts, strict=True))
    return SizePlan(
        layers=layers, signature=signature, original_size=original_size,
        channel_weights=joined(channels[0]), channel_classes=joined(channels[1]), channel_slots=joined(channels[2]),
        input_weights=joined(inputs[0]), input_classes=joined(inputs[1]), input_slots=joined(inputs[2]),
        is_external=wiring.is_external.to(device), num_slots=num_slots,
        counts_weights=objective is not Objective.ACTIVATIONS,
        constants=tuple(one.parameter for one in constants), constant_channels=joined(positions),
        is_hinge=joined(hinges, torch.bool),
    )  # fmt: skip
