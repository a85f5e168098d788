"""What each of the four savings is in a recipe: the settings that it adds to plain training of the same network.

Plain training has the same data, network, batches, precision and number of epochs. To give a recipe its savings, write
one more ``case`` in ``savings_of``.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from scrimp._core.names import nearest
from scrimp.errors import ConfigError
from scrimp.steps import decoupled_sgd
from scrimp.train.config import TrainConfig

SAVINGS = ("samples", "steps", "bits", "checkpoints")

# The settings that belong to a saving. Off, each has the default of TrainConfig, but for the codec.
SAMPLE_SETTINGS = ("sample_rule", "prune_ratio", "keep")
BIT_SETTINGS = ("compress", "gamma", "target_bytes", "quantizer")
_SETTINGS = {
    "samples": SAMPLE_SETTINGS,
    "steps": (
        "whiten", "whiten_epsilon", "whiten_bias_epochs", "pool_early", "celu", "ghost_batch", "freeze_bn_scale",
        "bias_scale", "first_size", "last_size", "full_size_from", "views", "lookahead", "ema",
    ),
    "bits": BIT_SETTINGS,
    "checkpoints": ("checkpoint_codec", "checkpoint_error"),
}  # fmt: skip
_PLAIN_CODEC = "lossless"


@dataclass(frozen=True)
class Savings:
    """The settings of each saving in one recipe; an empty one means that the recipe has no such saving.

    ``plain`` are settings that plain training needs to be at its best, such as a learning rate that is tuned for it.
    """

    samples: Mapping[str, Any] = field(default_factory=dict)
    steps: Mapping[str, Any] = field(default_factory=dict)
    bits: Mapping[str, Any] = field(default_factory=dict)
    checkpoints: Mapping[str, Any] = field(default_factory=lambda: {"checkpoint_codec": "residual-small"})
    plain: Mapping[str, Any] = field(default_factory=dict)

    def names(self) -> tuple[str, ...]:
        """The savings that there are."""
        return tuple(name for name in SAVINGS if getattr(self, name))


def savings_of(recipe: str) -> Savings:
    """What the four savings are in ``recipe``. Raises: ConfigError - nobody has said so for this recipe."""
    match recipe:
        case "digits":
            return Savings(
                samples={"keep": 0.6},
                steps={"pool_early": "norm", "freeze_bn_scale": True, "bias_scale": 16.0, "whiten": True},
                bits={"compress": True, "gamma": 0.04},
            )
        case "fashion-mnist":
            return Savings(
                samples={"keep": 0.58},
                steps={
                    "whiten": True, "pool_early": "norm", "freeze_bn_scale": True, "first_size": 20, "views": "flip",
                },
                bits={"compress": True, "gamma": 0.015},
            )  # fmt: skip
        case "cifar10-small":
            return Savings(
                samples={"keep": 0.6},
                steps={"whiten": True, "freeze_bn_scale": True, "bias_scale": 64.0},
                bits={"compress": True},
            )
        case "cifar10":
            muon = decoupled_sgd(6.5, 0.0157, momentum=0.85, batch_size=500)  # of the parameters that are no filters
            return Savings(
                samples={"keep": 0.6},
                steps={
                    "whiten": True, "whiten_bias_epochs": 3.0, "freeze_bn_scale": True, "bias_scale": 64.0,
                    "first_size": 24, "full_size_from": 0.6, "views": "six", "optimizer": "muon",
                    "learning_rate": muon.lr, "weight_decay": muon.weight_decay, "warmup": 0.0,
                },
                bits={"compress": True},
                plain={"optimizer": "sgd", "learning_rate": 0.4, "weight_decay": 5e-4, "warmup": 0.2},
            )  # fmt: skip
        case "text":
            return Savings(
                samples={"keep": 0.58},
                steps={"optimizer": "muon-adamw", "muon_learning_rate": 0.02, "muon_momentum": 0.95},
                bits={"compress": True, "gamma": 0.0005},
            )
        case _:
            known = ["digits", "fashion-mnist", "cifar10-small", "cifar10", "text"]
            raise ConfigError(f"the recipe {recipe} does not say what its savings are; those of {', '.join(known)} do")


def with_savings(config: TrainConfig, savings: Collection[str]) -> TrainConfig:
    """``config``, a recipe's, with these of the four savings and without the others: none of them is plain training.

    Raises: ConfigError - the recipe has no such saving.
    """
    of = savings_of(config.recipe)
    for name in savings:
        if name not in SAVINGS:
            raise ConfigError(f"no saving is called {name!r}{nearest(name, list(SAVINGS))}")
        if not getattr(of, name):
            raise ConfigError(f"the recipe {config.recipe} has no saving in {name}; it has {', '.join(of.names())}")
    changes = {**_off(SAVINGS), **of.plain}
    for name in SAVINGS:
        if name in savings:
            changes |= getattr(of, name)
    return config.replace(**changes)


def parse_savings(text: str, recipe: str) -> tuple[str, ...]:
    """``all``, ``none``, or names between commas, as names. Raises: ConfigError - a recipe without what they are."""
    if text in ("all", "none"):
        return savings_of(recipe).names() if text == "all" else ()
    return tuple(dict.fromkeys(word.strip() for word in text.split(",")))


def without_rivals(config: TrainConfig, given: Mapping[str, Any]) -> TrainConfig:
    """``config`` without those of its settings that would contradict the settings ``given`` by a user.

    Another rule, ratio or budget takes the place of the recipe's; without compression gamma has no meaning.
    """
    changes: dict[str, Any] = {}
    if any(name in given for name in _SETTINGS["samples"]):
        changes |= _off(("samples",))
    if given.get("compress") is False:
        changes |= _off(("bits",))
    if given.get("lookahead") or given.get("ema") is not None:
        changes |= {"lookahead": False, "ema": None}
    if given.get("checkpoint_codec", "residual") != "residual":
        changes |= {"checkpoint_error": None}
    return config.replace(**changes)


def _off(savings: Collection[str]) -> dict[str, Any]:
    plain = TrainConfig()
    off = {name: getattr(plain, name) for saving in savings for name in _SETTINGS[saving]}
    return {**off, "checkpoint_codec": _PLAIN_CODEC} if "checkpoints" in savings else off
