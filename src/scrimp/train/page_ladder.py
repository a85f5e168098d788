"""The ladder of D. Page's "Bag of Tricks": from 75 seconds to 26 on one GPU of its day, one trick after the other."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scrimp.errors import ConfigError
from scrimp.train.config import TrainConfig


@dataclass(frozen=True)
class Rung:
    """A trick, the settings that it changes, and what was published of the network that has it and all before it.

    ``published_accuracy`` is the mean of 50 runs, in percent, at the number of epochs of the rung before; what it
    gained was then traded for fewer epochs, those of this rung. ``published_seconds`` is the training time after that,
    on one V100. None where nothing was published.
    """

    name: str
    changes: Mapping[str, Any]
    published_accuracy: float | None
    published_seconds: float | None


_COOLDOWN_EPOCHS = 2.0

LADDER = (
    Rung(
        "baseline",
        {
            "model": "resnet9", "model_args": {"width": 64}, "crop_padding": 4, "flip": "random", "cutout": 8,
            "num_epochs": 24.0, "batch_size": 512, "learning_rate": 0.4, "warmup": 5 / 24, "weight_decay": 5e-4,
            "decay_norms": True,
        },
        94.1, 75,
    ),
    Rung("pooling before the activation", {"pool_early": "activation"}, 94.1, 67),
    Rung("pooling before the norm", {"pool_early": "norm", "num_epochs": 25.0, "warmup": 0.2}, 94.0, 64),
    Rung("label smoothing", {"label_smoothing": 0.2, "num_epochs": 23.0}, 94.2, 59),
    Rung("CELU", {"celu": 0.075, "num_epochs": 20.0}, 94.3, 52),
    Rung("ghost batch norm", {"ghost_batch": 32, "learning_rate": 0.6, "num_epochs": 18.0}, 94.2, 46),
    Rung(
        "frozen batch-norm scales",
        {
            "freeze_bn_scale": True, "bias_scale": 64.0, "celu": 0.3,
            "model_args": {"width": 64, "head_scale": 1 / 16}, "num_epochs": 17.0,
        },
        94.2, 43,
    ),
    Rung("whitened input", {"whiten": True, "whiten_epsilon": 1e-2, "num_epochs": 15.0}, 94.4, 39),
    Rung("higher learning rate, smaller cutout", {"learning_rate": 1.0, "cutout": 5, "num_epochs": 14.0}, None, 36),
    Rung(
        "average of the weights",
        {"ema": 0.99, "final_learning_rate": 0.1, "cooldown": _COOLDOWN_EPOCHS / 13, "num_epochs": 13.0},
        94.3, 33.5,
    ),
    Rung(
        "mirrored view at test time",
        {"views": "flip", "cutout": 0, "num_epochs": 10.0, "cooldown": _COOLDOWN_EPOCHS / 10},
        94.6, 26,
    ),
)  # fmt: skip
"""His data on the GPU, augmented there, is a rung of his ladder between the first two; here every rung has it."""


def page_rung(number: int | None = None) -> TrainConfig:
    """The configuration of one rung, counted from 0, with all before it; the last one if none is named.

    Raises: ConfigError - there is no such rung.
    Source: D. Page, "How to Train Your ResNet 8: Bag of Tricks" (2019) and the code of cifar10-fast. Differs: torch's
        momentum, which does not carry the learning rate of the time of a gradient along (equal at a constant learning
        rate); each image is augmented by itself; ghost batches are consecutive samples and their running variance has
        that of the means; bfloat16 where the hardware has it.
    """
    last = len(LADDER) - 1
    number = last if number is None else number
    if not 0 <= number <= last:
        raise ConfigError(f"rung is {number}: the ladder has the rungs 0 ({LADDER[0].name}) to {last} (--rung)")
    changes: dict[str, Any] = {}
    for rung in LADDER[: number + 1]:
        changes |= copy.deepcopy(dict(rung.changes))
    return TrainConfig(recipe="cifar10-page", data="cifar10", evaluate_every=5.0, **changes)


_LENGTH_AND_SIZE = {
    "num_epochs",
    "warmup",
    "cooldown",
    "learning_rate",
    "final_learning_rate",
    "batch_size",
    "model_args",
}


def rung_of(config: TrainConfig) -> int | None:
    """The rung that a run of ``cifar10-page`` stands on, whatever its length, rates and width; ``None`` if on none."""
    if config.recipe != "cifar10-page":
        return None
    names = {name for rung in LADDER for name in rung.changes} - _LENGTH_AND_SIZE
    for number in range(len(LADDER)):
        if all(getattr(config, name) == getattr(page_rung(number), name) for name in names):
            return number
    return None


def ladder_facts(rung: int) -> dict[str, Any]:
    """For the record: the names of the rungs, the published seconds of each, and on which the run stands."""
    return {
        "rung": rung, "names": [one.name for one in LADDER],
        "published_seconds": [one.published_seconds for one in LADDER],
    }  # fmt: skip
