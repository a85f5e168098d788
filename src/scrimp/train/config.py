"""What a training run is made of: one flat, frozen, typed value.

A recipe returns it, the command line overrides it, ``config.json`` of a run directory holds it.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin, get_type_hints

from scrimp._core.names import nearest
from scrimp.errors import ConfigError

_FEWEST_EPOCHS = 1e-6  # between evaluations or checkpoints
_MOST_THREADS = 4096

ModelArg = int | float | bool | str


def _setting(default: Any, help_text: str, group: str, **more: Any) -> Any:
    """A field with what the command line needs to know of it."""
    metadata = {"help": help_text, "group": group, **more}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def parse_bytes(text: str) -> int:
    """A number of bytes, with k, M or G for thousands, millions or billions.

    Raises: ValueError - something else, in a sentence.
    """
    factor = {"k": 10**3, "m": 10**6, "g": 10**9}.get(text[-1:].lower(), 1)
    try:
        return round(float(text[:-1] if factor > 1 else text) * factor)
    except (ValueError, OverflowError):
        raise ValueError(f"{text!r} is no size; give a number of bytes, such as 600k") from None


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run. Every field is a flag of ``scrimp train``; ``config.json`` of a run directory holds them all.

    Raises ConfigError at construction when a value is impossible. Fields marked ``changes_result=False`` may differ
    between a run and its resumption.
    """

    recipe: str = _setting("custom", "name of the recipe that the settings come from", "run", flag=False)

    data: str = _setting(
        "digits", "digits, fashion-mnist, cifar10, text, a path, or hf://OWNER/NAME", "data", changes_result=False
    )
    image_size: int | None = _setting(
        None, "image files: scale the shorter side to this and keep the middle square, pixels; none: all have one size",
        "data",
    )  # fmt: skip
    crop_padding: int = _setting(0, "random crops from images padded by this many pixels; 0 for none", "data")
    crop_scale: float | None = _setting(
        None,
        "random crops of at least this fraction of an image, scaled back to its size; none for no such crops",
        "data",
    )
    crop_mode: Literal["reflect", "constant"] = _setting(
        "reflect", "what lies outside the image: its mirror image, or zeros", "data"
    )
    flip: Literal["none", "random", "alternating"] = _setting("none", "mirror images left-right in training", "data")
    cutout: int = _setting(0, "side of a random square that is blanked in each image, pixels; 0 for none", "data")
    first_size: int | None = _setting(
        None,
        "side of the images that training starts with, pixels; they grow to their full size; none: full at once",
        "data",
    )
    last_size: int | None = _setting(
        None, "side of the images that training ends with, pixels; tests have their full size; none: full", "data"
    )
    full_size_from: float = _setting(0.5, "fraction of training after which images have their full size", "data")
    views: Literal["none", "flip", "six"] = _setting(
        "none", "predictions averaged per test image: flip adds its mirror image, six also shifts both", "data"
    )
    context_length: int = _setting(128, "text: tokens that a sample spans", "data")

    sample_rule: Literal["auto", "none", "mean", "quantiles", "budget", "random"] = _setting(
        "auto",
        "which samples an epoch leaves out, unbiased: mean is InfoBatch, budget an exact number, random its control; "
        "auto: mean with --prune-ratio, budget with --keep, else none",
        "samples",
    )
    prune_ratio: float | None = _setting(
        None, "mean: fraction of the samples below the mean loss that an epoch leaves out (0.5)", "samples"
    )
    keep: float | None = _setting(None, "budget, random: fraction of the samples that an epoch visits (0.6)", "samples")

    compress: bool = _setting(False, "let channels learn their bits, and remove those that need none", "bits")
    gamma: float = _setting(0.02, "weight of the model's size in the loss", "bits")
    target_bytes: int | None = _setting(
        None,
        "size of the packed model to steer gamma to, such as 600k; none for a fixed gamma",
        "bits",
        parse=parse_bytes,
    )
    quantizer: Literal["bits-range", "bits-exponent", "step-range"] = _setting(
        "bits-range",
        "what a channel learns: bits and the range that they divide, bits and exponent (the paper), or step and range",
        "bits",
    )

    model: str = _setting(
        "small-cnn",
        "small-cnn, resnet9, airbench, resnet18, resnet20, resnet50, vit, gpt, or MODULE:FUNCTION, which returns one",
        "model",
    )
    model_args: dict[str, ModelArg] = _setting({}, "arguments of the model, as NAME=VALUE", "model")

    whiten: bool = _setting(
        False, "images: whiten patches by the first convolution, which is then frozen, or by one put before it", "model"
    )
    whiten_epsilon: float = _setting(5e-4, "added to the variances of patches before they are whitened", "model")
    whiten_bias_epochs: float | None = _setting(
        None, "epochs, pruned or not, that train the bias behind the whitening filters; none: all", "model"
    )
    pool_early: Literal["no", "activation", "norm"] = _setting(
        "no",
        "move max poolings before the activation (same function), or before the norm as well (another one)",
        "model",
    )
    celu: float | None = _setting(None, "replace each ReLU by a CELU with this alpha; none to keep them", "model")
    ghost_batch: int | None = _setting(
        None, "samples that a batch norm normalises together in training; none: the whole batch", "model"
    )
    freeze_bn_scale: bool = _setting(False, "fix the scale of batch norms at 1", "model")
    bias_scale: float = _setting(1.0, "factor on the learning rate of batch-norm biases", "model")

    num_epochs: float = _setting(10.0, "epochs; may be fractional", "optimization")
    batch_size: int = _setting(128, "samples per optimizer step (per process under torchrun)", "optimization")
    accumulation: int = _setting(1, "parts that a batch is split into to save memory", "optimization")
    optimizer: Literal["sgd", "adamw", "muon", "muon-adamw"] = _setting(
        "sgd",
        "SGD with Nesterov momentum, AdamW, Muon for filters (of fixed norm) and SGD for the rest, or Muon for the "
        "weights of hidden layers and AdamW for the rest",
        "optimization",
    )
    learning_rate: float = _setting(0.1, "peak learning rate", "optimization", short="--lr")
    muon_learning_rate: float = _setting(0.24, "peak learning rate of what Muon trains", "optimization")
    muon_momentum: float = _setting(0.6, "momentum of what Muon trains", "optimization")
    warmup: float = _setting(0.2, "fraction of training over which the learning rate rises", "optimization")
    first_learning_rate: float = _setting(0.0, "learning rate at the start, as a fraction of the peak", "optimization")
    decay: Literal["linear", "cosine", "constant"] = _setting(
        "linear", "shape of the fall after the peak", "optimization"
    )
    final_learning_rate: float = _setting(0.0, "learning rate at the end, as a fraction of the peak", "optimization")
    cooldown: float = _setting(
        0.0, "fraction of training, at its end, that goes on with the final learning rate", "optimization"
    )
    momentum: float = _setting(0.9, "momentum of SGD, or beta1 of AdamW", "optimization")
    beta2: float = _setting(0.95, "beta2 of AdamW", "optimization")
    weight_decay: float = _setting(5e-4, "weight decay of weights (not of biases and norms)", "optimization")
    decay_norms: bool = _setting(False, "decay biases and norms too", "optimization")
    lookahead: bool = _setting(False, "go on from a running average of the weights every 5 steps", "optimization")
    ema: float | None = _setting(
        None,
        "judge and keep a running average of the weights with this decay per step; none to keep the last",
        "optimization",
    )
    label_smoothing: float = _setting(0.0, "images: probability spread over all classes", "optimization")
    clip_norm: float | None = _setting(None, "clip the gradient to this norm; none for no clipping", "optimization")

    seed: int = _setting(0, "seed of weights, order and augmentation", "run")
    device: str = _setting("auto", "auto, cpu, cuda, cuda:N or mps", "run", changes_result=False)
    threads: int | None = _setting(None, "CPU threads; none for torch's choice", "run", changes_result=False)
    precision: Literal["auto", "float32", "bfloat16"] = _setting(
        "auto", "auto: bfloat16 autocast where the hardware has it natively", "run"
    )
    graphs: bool = _setting(
        False, "CUDA: capture whole steps as graphs, one per size of image (not yet run on a GPU)", "run",
        changes_result=False,
    )  # fmt: skip
    deterministic: bool = _setting(False, "only deterministic kernels (slower on CUDA)", "run")

    evaluate_every: float = _setting(
        1.0, "epochs between evaluations; the end is always evaluated", "record", changes_result=False
    )
    checkpoint_every: float = _setting(
        1.0, "epochs between checkpoints; the end is always saved", "record", changes_result=False
    )
    keep_checkpoints: int | None = _setting(
        None, "checkpoints kept on disk; none for all", "record", changes_result=False
    )
    checkpoint_codec: Literal["residual", "residual-small", "excp", "lossless"] = _setting(
        "residual", "how checkpoints behind the newest, which is exact, are stored", "record", changes_result=False
    )
    checkpoint_error: float | None = _setting(
        None,
        "residual: largest error of a weight in the history, in units of its tensor's movement since the checkpoint "
        "before (0.6)",
        "record",
        changes_result=False,
    )
    checkpoint_async: bool = _setting(
        False, "write checkpoints behind training, from a copy of the state", "record", changes_result=False
    )
    log_every: int = _setting(20, "steps between lines in metrics.jsonl", "record", changes_result=False)
    profile: bool = _setting(
        False, "show what 20 steps are spent on, operation by operation, and leave trace.json", "record",
        changes_result=False,
    )  # fmt: skip
    tensorboard: bool = _setting(
        False, "also write TensorBoard events into the run directory", "record", changes_result=False
    )
    wandb: str | None = _setting(None, "also log to this Weights & Biases project", "record", changes_result=False)

    def __post_init__(self) -> None:
        _check_types(self)
        at_least_one = ("batch_size", "accumulation", "context_length", "log_every")
        for name in at_least_one:
            _require(getattr(self, name) >= 1, name, getattr(self, name), "it must be at least 1")
        positive = (
            "num_epochs", "learning_rate", "muon_learning_rate", "bias_scale", "whiten_epsilon", "evaluate_every",
            "checkpoint_every",
        )  # fmt: skip
        for name in positive:
            value = getattr(self, name)
            _require(math.isfinite(value) and value > 0, name, value, "it must be a positive number")
        for name in ("evaluate_every", "checkpoint_every"):
            value = getattr(self, name)
            _require(value >= _FEWEST_EPOCHS, name, value, f"it must be at least {_FEWEST_EPOCHS}")
        for name in ("crop_padding", "cutout", "weight_decay", "gamma", "seed"):
            value = getattr(self, name)
            _require(math.isfinite(value) and value >= 0, name, value, "it must not be negative")
        _require(self.seed < 2**63, "seed", self.seed, "it must be below 2**63")
        for name in ("warmup", "first_learning_rate", "final_learning_rate", "cooldown", "full_size_from"):
            value = getattr(self, name)
            _require(0 <= value <= 1, name, value, "it is a fraction from 0 to 1")
        for name in ("momentum", "muon_momentum", "beta2", "label_smoothing"):
            value = getattr(self, name)
            _require(0 <= value < 1, name, value, "it must lie in [0, 1)")
        positive_or_none = (
            "clip_norm", "celu", "first_size", "last_size", "image_size", "ghost_batch", "whiten_bias_epochs",
            "checkpoint_error", "target_bytes",
        )  # fmt: skip
        for name in positive_or_none:
            value = getattr(self, name)
            _require(value is None or 0 < value < math.inf, name, value, "it must be positive, or none")
        if self.keep_checkpoints is not None:
            _require(self.keep_checkpoints >= 1, "keep_checkpoints", self.keep_checkpoints, "it must be at least 1")
        if self.ema is not None:
            _require(0 < self.ema < 1, "ema", self.ema, "it must lie strictly between 0 and 1, or be none")
        if self.threads is not None:
            is_possible = 1 <= self.threads <= _MOST_THREADS
            rule = f"it must be at least 1 and at most {_MOST_THREADS}, or none"
            _require(is_possible, "threads", self.threads, rule)
        num_at_once = self.batch_size // self.accumulation
        if self.ghost_batch is not None and self.ghost_batch > num_at_once:
            raise ConfigError(
                f"ghost_batch is {self.ghost_batch}, but only {num_at_once} samples pass through the model at once; "
                "lower --ghost-batch or raise --batch-size"
            )
        if self.crop_scale is not None:
            is_fraction = 0 < self.crop_scale <= 1
            _require(is_fraction, "crop_scale", self.crop_scale, "it is a fraction above 0 and up to 1, or none")
        if self.last_size is not None and self.first_size is None:
            raise ConfigError("--last-size is where images that grow end; give --first-size, where they begin, as well")
        if self.warmup + self.cooldown > 1:
            raise ConfigError(
                f"warmup is {self.warmup} and cooldown {self.cooldown}: together they are longer than training; lower "
                "--warmup or --cooldown"
            )
        if self.accumulation > self.batch_size:
            raise ConfigError(
                f"accumulation is {self.accumulation}, but a batch has only {self.batch_size} samples to split; "
                "lower --accumulation or raise --batch-size"
            )

    def replace(self, **changes: Any) -> "TrainConfig":
        """A copy with some fields changed. Raises ConfigError for an unknown field, naming the nearest known one."""
        known = [f.name for f in dataclasses.fields(self)]
        for name in changes:
            if name not in known:
                raise ConfigError(f"no setting is called {name!r}{nearest(name, known)}")
        return dataclasses.replace(self, **changes)

    def with_model(self, model: str) -> "TrainConfig":
        """A copy for ``model``; another one than the present starts without the settings that belong to a model."""
        if model == self.model:
            return self
        plain = {
            f.name: getattr(TrainConfig(), f.name) for f in dataclasses.fields(self) if f.metadata["group"] == "model"
        }
        return self.replace(**{**plain, "model": model})

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TrainConfig":
        """The inverse of ``to_dict``; missing fields take their defaults, unknown ones raise ConfigError."""
        return cls().replace(**values)

    def differences(self, other: "TrainConfig") -> list[str]:
        """Fields that change the result and differ, as ``name: ours != theirs``."""
        return [
            f"{f.name}: {getattr(self, f.name)!r} != {getattr(other, f.name)!r}"
            for f in dataclasses.fields(self)
            if f.metadata.get("changes_result", True) and getattr(self, f.name) != getattr(other, f.name)
        ]


def _require(condition: bool, name: str, value: object, rule: str) -> None:
    if not condition:
        raise ConfigError(f"{name} is {value!r}: {rule} (--{name.replace('_', '-')})")


def _check_types(config: TrainConfig) -> None:
    """A config also comes from JSON and from user code: refuse a string where a number belongs, here and not later."""
    for name, expected in get_type_hints(TrainConfig).items():
        value = getattr(config, name)
        if expected is float and isinstance(value, int) and not isinstance(value, bool):
            object.__setattr__(config, name, float(value))
        elif not _fits(value, expected):
            allowed = get_args(expected) if get_origin(expected) is Literal else None
            rule = (
                f"it must be one of {', '.join(map(repr, allowed))}"
                if allowed
                else f"it must be {_type_name(expected)}"
            )
            raise ConfigError(f"{name} is {value!r}: {rule} (--{name.replace('_', '-')})")


def _fits(value: object, expected: Any) -> bool:
    origin = get_origin(expected)
    if origin is Literal:
        return value in get_args(expected)
    if origin is dict:
        key_type, value_type = get_args(expected)
        return isinstance(value, dict) and all(_fits(k, key_type) and _fits(v, value_type) for k, v in value.items())
    if origin is not None:  # a union
        return any(_fits(value, option) for option in get_args(expected))
    if expected is int or expected is float:
        accepted = int if expected is int else (int, float)
        return isinstance(value, accepted) and not isinstance(value, bool)
    return isinstance(value, expected)


def _type_name(expected: Any) -> str:
    if get_origin(expected) is dict:
        return "a mapping of names to numbers, booleans or strings"
    if get_origin(expected) is not None:
        return " or ".join(_type_name(option) for option in get_args(expected))
    names = {int: "an integer", float: "a number", bool: "true or false", str: "a text", type(None): "none"}
    return names.get(expected, str(expected))


def parse_model_arg(text: str) -> tuple[str, ModelArg]:
    """``NAME=VALUE`` with VALUE read as a JSON number, boolean or (quoted) text where it is one, else as text."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise ConfigError(f"--model-args takes NAME=VALUE, for example width=64; it was given {text!r}")
    try:
        parsed = json.loads(value)
    except json.JSONDecodeError:
        return name, value
    return name, parsed if isinstance(parsed, bool | int | float | str) else value
