"""Self-compression as the settings of a run ask for it."""

import contextlib
import dataclasses
import itertools
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from scrimp import bits
from scrimp._core.param_groups import param_groups
from scrimp._core.rng import generator
from scrimp._core.structure import Structure, StructureChange, apply_structure_, read_structure
from scrimp.errors import ConfigError, NoEffectWarning, StructureError
from scrimp.steps import Muon, WeightAverage, split_filters
from scrimp.steps.muon import renormalize_
from scrimp.train.config import TrainConfig
from scrimp.train.job import Seams
from scrimp.train.models import ModelFacts
from scrimp.train.parallel import from_all_ranks

_START_BITS = 4.0  # as good as more in training from scratch, and nearer to where bits end
_SETTLED_FROM = 0.9  # of training; bits are frozen from here on, and the weights settle around them
_NUM_REMOVALS = 40
_NUM_MEASUREMENTS = 100
_QUANTIZERS: dict[str, type[Any]] = {
    "bits-range": bits.BitsRange, "bits-exponent": bits.BitsExponent, "step-range": bits.StepRange,
}  # fmt: skip


class Compressor:
    """The compression of one run: gamma, removals, what is logged of it, and what a checkpoint has to know."""

    def __init__(self, config: TrainConfig, model: nn.Module, facts: ModelFacts, metadata: Mapping[str, Any]) -> None:
        self.model, self.metadata = model, metadata
        self.plain_parameters = sum(parameter.numel() for parameter in model.parameters())
        self.compression, self.example = compress_model_(config, model, facts)
        layers = bits.quantized_layers(model)
        self.layers_before = {
            name: (len(layers[name].bits), layers[name].raw_weight.numel()) for name in self.compression.layers
        }
        self.edges = _edges(layers, self.compression.layers)
        self.target = None if config.target_bytes is None else bits.TargetSize(config.target_bytes, gamma=config.gamma)
        self.optimizer: torch.optim.Optimizer | None = None
        self.average: WeightAverage | None = None
        self.waiting = 0
        self._has_changed = False
        self._removed: StructureChange | None = None
        self._fixed_gamma = config.gamma
        self._progress = 0.0
        self._removed_at = self._measured_at = 0.0
        try:
            self._remove(dry_run=True)
        except StructureError as error:
            raise ConfigError(f"--compress: channels of the model cannot be removed: {error}") from error

    @property
    def gamma(self) -> float:
        """The present weight of the size in the loss."""
        if self._progress >= _SETTLED_FROM:
            return 0.0
        return self._fixed_gamma if self.target is None else self.target.gamma

    def before_step(self, progress: float) -> None:
        """Take note of the progress; freeze the bits when it is time."""
        if progress >= _SETTLED_FROM > self._progress:
            bits.freeze_bits_(self.model)
            self._has_changed = True
        self._progress = progress

    def penalty(self, model: nn.Module) -> Float[Tensor, ""]:
        """What is added to the loss."""
        return self.gamma * bits.size_penalty(model)

    def after_step(self, _step: int) -> None:
        """Now and then: steer gamma, take dead channels out."""
        if self.target is not None and self._progress - self._measured_at >= 1 / _NUM_MEASUREMENTS:
            self._measured_at = self._progress
            if self._progress < _SETTLED_FROM:
                self.target.update(self._progress, from_all_ranks(self._packed_bytes())[0])
            else:
                self._fit_size()
        if self._progress - self._removed_at >= 1 / _NUM_REMOVALS:
            self._removed_at = self._progress
            dead = [layer.dead for layer in bits.quantized_layers(self.model).values()]
            if bool(torch.cat(dead).any()):  # or there is no need to follow the model's channels
                self._remove()

    def at_end(self) -> None:
        """Settle the bits and take out what is still there of dead channels."""
        bits.finalize_(self.model)
        self._remove(fold_constants=True)
        if self.target is not None:
            self._fit_size()
            bits.finalize_(self.model)
        if self.average is not None:  # the model is the average by now
            self.average.restart()

    def _fit_size(self) -> None:
        assert self.target is not None
        bits.fit_size_(self.model, self.target.target_bytes, metadata=self.metadata)

    def _packed_bytes(self) -> int:
        return bits.packed_bytes_estimate(self.model, metadata=self.metadata)

    def _remove(self, *, fold_constants: bool = False, dry_run: bool = False) -> None:
        norms = self.optimizer.keeping_norms() if isinstance(self.optimizer, Muon) else contextlib.nullcontext()
        with warnings.catch_warnings(), norms:
            warnings.simplefilter("ignore", NoEffectWarning)  # what keeps channels is told on the page
            report = bits.remove_dead_channels_(
                self.model, self.optimizer, () if self.average is None or fold_constants else (self.average,),
                fold_constants=fold_constants, dry_run=dry_run,
            )  # fmt: skip
        self.waiting = sum(report.waiting.values())
        if not dry_run and not report.change.is_empty:
            self._removed = report.change if self._removed is None else self._removed.then(report.change)
            self._has_changed = True
            bits.same_structure_on_all_ranks(self.model)

    def has_changed(self) -> bool:
        """Whether parameters have other shapes, or bits are frozen, since this was last asked."""
        changed, self._has_changed = self._has_changed, False
        return changed

    def take_change(self) -> StructureChange | None:
        """What was removed since this was last asked; a checkpoint's difference is taken to what is left."""
        removed, self._removed = self._removed, None
        return removed

    def log(self) -> dict[str, float]:
        """The size now, as it would be packed, the weights that are left, and gamma."""
        layers = bits.quantized_layers(self.model).values()
        left = sum(weight.numel() for weight in {id(layer.raw_weight): layer.raw_weight for layer in layers}.values())
        return {
            "packed_bytes": self._packed_bytes(),
            "weights_kept_fraction": left / max(1, self.compression.num_weights),
            "gamma": self.gamma,
            "dead_channels": self.waiting,
        }

    def state_dict(self) -> dict[str, Any]:
        """The structure, and where in training things happened."""
        return {
            "structure": read_structure(self.model).to_state(),
            "progress": self._progress, "removed_at": self._removed_at, "measured_at": self._measured_at,
            "target": None if self.target is None else self.target.state_dict(),
        }  # fmt: skip

    def before_restore(self, state: Mapping[str, Any]) -> None:
        """Give the fresh model the structure that was saved."""
        apply_structure_(self.model, Structure.from_state(state["structure"]), self.optimizer)
        if self.average is not None:
            self.average.restart()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on; the model has been restored by now."""
        bits.set_wiring_(self.model, bits.graph_wiring(self.model, self.example))
        self._progress = state["progress"]
        self._removed_at, self._measured_at = state["removed_at"], state["measured_at"]
        if self.target is not None:
            self.target.load_state_dict(state["target"])
        if self._progress >= _SETTLED_FROM:
            bits.freeze_bits_(self.model)


def compress_model_(config: TrainConfig, model: nn.Module, facts: ModelFacts) -> tuple[bits.Compression, Tensor]:
    """Give a fresh model the quantisers of a run; what was done, and the inputs that the model was looked at with.

    Scales are made for the weights as training starts with them: Muon changes the norms of filters before its first
    step.
    """
    if config.optimizer == "muon":
        filters, _ = split_filters(model, param_groups(model, lr=1.0))
        renormalize_(filters[0]["params"])
    example = _example(facts).to(next(model.parameters()).device)
    quantizer = _QUANTIZERS[config.quantizer]
    return bits.self_compress_(model, example, bits=_START_BITS, quantizer=quantizer), example


def compressor_of(
    config: TrainConfig, model: nn.Module, facts: ModelFacts, metadata: Mapping[str, Any]
) -> Compressor | None:
    """The compressor of a run that asks for one; ``model`` learns its bits from here on.

    ``metadata`` will be in the packed file.

    Raises: ConfigError - settings that contradict each other, or a model that cannot be compressed.
    """
    if not config.compress:
        for name in ("gamma", "target_bytes", "quantizer"):
            if getattr(config, name) != getattr(TrainConfig(), name):
                raise ConfigError(f"--{name.replace('_', '-')} is for --compress, which is not asked for")
        return None
    if config.graphs:
        raise ConfigError("--compress and --graphs do not go together: the captured steps would have the old widths")
    return Compressor(config, model, facts, metadata)


def with_compression(
    compressor: Compressor | None,
    seams: Seams,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage | None,
) -> Seams:
    """``seams`` with what the compressor does; channels leave the optimizer's state and the average as well."""
    if compressor is None:
        return seams
    compressor.optimizer, compressor.average = optimizer, average
    return dataclasses.replace(
        seams,
        penalty=compressor.penalty,
        before_step=(*seams.before_step, compressor.before_step),
        after_step=(*seams.after_step, compressor.after_step),
        at_end=(*seams.at_end, compressor.at_end),
        log=(*seams.log, compressor.log),
        has_changed=compressor.has_changed,
        take_change=compressor.take_change,
        before_restore={**seams.before_restore, "compression": compressor.before_restore},
        state={**seams.state, "compression": compressor},
    )


def _edges(layers: Mapping[str, bits.QuantizedLayer], order: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of layers of which the second reads what the first gives, as it is or in a sum."""
    found = []
    for source, target in itertools.combinations(order, 2):
        wiring = layers[source].quantizer.wiring
        assert wiring is not None
        given, read = (wiring.outputs[layers[source].quantizer.name], wiring.inputs[layers[target].quantizer.name])
        if bool(torch.isin(given, read).any()):
            found.append((source, target))
    return found


def _example(facts: ModelFacts) -> Tensor:
    """Two samples of the data's shape that are not all alike."""
    zeros = facts.example_input(2)
    if facts.vocab_size is not None:
        return torch.arange(zeros.numel()).view_as(zeros) % facts.vocab_size
    return torch.randn(zeros.shape, generator=generator(0, "compression example"))
