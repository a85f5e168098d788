"""The model of a finished run, with what it takes to use it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from scrimp._core.rng import generator
from scrimp._core.structure import Structure, apply_structure_
from scrimp.bits import plain_copy, read_metadata, unpack
from scrimp.errors import ConfigError, DataNotFoundError, FormatError
from scrimp.steps import Normalize
from scrimp.train.compression import compress_model_
from scrimp.train.config import TrainConfig
from scrimp.train.models import ModelFacts, build_model
from scrimp.train.outcome import MODEL_NAME, settings_of_model
from scrimp.train.run_dir import read_config
from scrimp.train.saving import open_checkpoints
from scrimp.train.surgery import change_model_


@dataclass(frozen=True)
class TrainedModel:
    """A trained model on the CPU, in evaluation mode.

    ``classes`` are the names of the outputs: classes, or the characters of a text model's vocabulary in order of token.
    ``mean`` and ``std`` per channel, of pixels from 0 to 1, are what images were normalised with; empty for text.
    """

    model: nn.Module
    config: TrainConfig
    classes: tuple[str, ...]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    facts: Mapping[str, Any] = field(default_factory=dict)

    def example(self) -> Tensor:
        """Two inputs as the model takes them, of noise or of arbitrary tokens."""
        return model_facts_of(self.config, self.facts).example_input(2)

    def metadata(self) -> dict[str, Any]:
        """What a packed file of the model has to say for ``unpack_run``."""
        return {"config": settings_of_model(self.config), "facts": dict(self.facts)}

    def prepare(self, images: Tensor) -> Tensor:
        """uint8 images of shape (batch, channels, height, width) as the model takes them: normalised float32."""
        return Normalize(self.mean, self.std).apply(images, None)


def load_run(run_dir: str | Path, step: int | None = None, *, quantized: bool = False) -> TrainedModel:
    """Build the model of a finished run again and load its weights: those of its end, or of one of its checkpoints.

    Of a compressed model the weights are the quantised ones, under the names of the plain model, at either time; a
    checkpoint of it has the channels that it had at ``step``. With ``quantized`` the model has its bits and raw weights
    as well, from the newest checkpoint if no ``step`` is given.

    Raises: DataNotFoundError - no finished run there. FormatError - its files are damaged. ConfigError - a model given
        as MODULE:FUNCTION does not import or no longer fits; ``quantized`` of a run that learned no bits. With a
        checkpoint as ``CheckpointStore.load``.
    """
    path = Path(run_dir) / MODEL_NAME
    config = read_config(Path(run_dir))
    if not path.exists():
        raise DataNotFoundError(f"{run_dir} has no {MODEL_NAME}: the run has not finished (scrimp train --resume)")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            written = (file.metadata() or {}).get("scrimp")
        facts = None if written is None else json.loads(written)
    except (safetensors.SafetensorError, ValueError) as error:
        raise FormatError(f"{path} is damaged or not written by scrimp ({error})") from error
    if facts is None:
        raise FormatError(f"{path} is not the file that the run wrote: it holds weights, but nothing of their model")
    if quantized and not config.compress:
        raise ConfigError(f"{run_dir} has learned no bits; train with --compress")
    if step is None and not quantized:
        model = fresh_model(config, facts)
        safetensors.torch.load_model(model, path)
    else:
        model = _model_at(config, facts, open_checkpoints(config, Path(run_dir)).load(step))
        model = plain_copy(model) if config.compress and not quantized else model
    model.eval()
    classes = tuple(facts["classes"])
    return TrainedModel(model, config, classes, tuple(facts.get("mean", ())), tuple(facts.get("std", ())), facts)


def _model_at(config: TrainConfig, facts: Mapping[str, Any], state: Mapping[str, Any]) -> nn.Module:
    """The model of a checkpoint; a compressed one with its quantisers."""
    model = fresh_model(config, {name: fact for name, fact in facts.items() if name != "structure"})
    if config.compress:
        compress_model_(config, model, model_facts_of(config, facts))
        structure = state["extra"]["stateful"]["compression"]["structure"]
        apply_structure_(model, Structure.from_state(structure))
    model.load_state_dict(state["model"])
    return model


def unpack_run(path: str | Path) -> TrainedModel:
    """The model in a packed file that ``scrimp train --compress`` wrote, built again from nothing else.

    Raises: FormatError - no such file. ConfigError - a model given as MODULE:FUNCTION that does not import.
    """
    metadata = read_metadata(path)
    if not isinstance(metadata.get("config"), dict) or not isinstance(metadata.get("facts"), dict):
        raise FormatError(f"{path} does not say how its model is made; fill a fresh one: scrimp.unpack(path, model)")
    config, facts = TrainConfig.from_dict(metadata["config"]), metadata["facts"]
    model = unpack(path, fresh_model(config, facts))
    classes = tuple(facts["classes"])
    return TrainedModel(model, config, classes, tuple(facts.get("mean", ())), tuple(facts.get("std", ())), facts)


def fresh_model(config: TrainConfig, facts: Mapping[str, Any]) -> nn.Module:
    """An instance of a run's model, without its weights, but of the structure that ``facts`` have if they have one."""
    model = build_model(config.model, config.model_args, model_facts_of(config, facts))
    noise = torch.rand(64, *facts.get("image_shape", ()), generator=generator(0)) if config.whiten else None
    change_model_(config, model, noise)  # filters are in the file
    if "structure" in facts:
        apply_structure_(model, Structure.from_state(facts["structure"]))
    return model


def model_facts_of(config: TrainConfig, facts: Mapping[str, Any]) -> ModelFacts:
    """What the data says about the model's shapes, from what is stored beside its weights."""
    num_classes = len(facts["classes"])
    if facts["kind"] == "text":
        return ModelFacts(vocab_size=num_classes, context_length=config.context_length)
    return ModelFacts.of_images(num_classes, tuple(facts["image_shape"]))
