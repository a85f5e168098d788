"""The last word on a run: what it reached, what it spent, and on what. Stored as ``summary.json``."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from scrimp.errors import FormatError

_TEXTS = ("recipe", "data", "model", "device", "precision")
_COUNTS = (
    "seed", "num_steps", "sample_visits", "sample_visits_full", "num_parameters", "model_float32_bytes",
    "checkpoint_raw_bytes", "checkpoint_stored_bytes", "threads", "world_size",
    "evaluation_views",
)  # fmt: skip
_OPTIONAL_COUNTS = (
    "model_packed_bytes", "peak_memory_bytes", "num_checkpoints", "num_keyframes", "checkpoint_exact_bytes",
)  # fmt: skip
_NUMBERS = ("num_epochs", "train_seconds", "total_seconds", "examples_per_second", "weights_kept_fraction")
_OPTIONAL_NUMBERS = (
    "test_accuracy", "test_accuracy_one_view", "test_loss_nats", "checkpoint_delta_ratio",
    "checkpoint_bytes_per_weight", "cpu_seconds", "energy_joules",
)  # fmt: skip
_OPTIONAL_TEXTS = ("sample_rule", "sample_text", "restored_sample_text", "command", "finished_at")


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One finished run in numbers. Units are in the names; fractions lie in [0, 1].

    ``sample_visits_full`` is what training without pruning would visit. ``model_packed_bytes`` is None until the model
    was packed. ``evaluation_views`` are the views of each test image over which the model was averaged, which makes
    inference as many times as dear; ``test_accuracy_one_view`` is without. ``cpu_seconds`` are those of all threads,
    ``energy_joules`` what processor packages and GPU used meanwhile, if the machine tells. ``phase_seconds`` says where
    the time went (``data``, ``forward``, ``backward``, ``optimizer``, ``evaluation``, ``checkpoint``, ``other``).
    ``command`` is the command line that repeats the run, ``finished_at`` an ISO 8601 date and time, ``sample_text``
    what a language model wrote after training, ``restored_sample_text`` what it wrote, from the same prompt and seed,
    with its weights as the history of checkpoints has them; None where that is exact.

    When samples were pruned: ``sample_rule`` names the rule and its ratio; ``pruning`` has ``pruned_fraction`` (of the
    samples, mean over the epochs), ``pruning_seconds`` and ``num_nonfinite_scores``; ``class_keep_rates`` the fraction
    of its visits in full training that each class got, by its name.
    """

    recipe: str
    data: str
    model: str
    seed: int
    device: str
    precision: str
    threads: int
    world_size: int = 1
    num_epochs: float
    num_steps: int
    sample_visits: int
    sample_visits_full: int
    train_seconds: float
    total_seconds: float
    examples_per_second: float
    cpu_seconds: float | None = None
    energy_joules: float | None = None
    phase_seconds: Mapping[str, float] = field(default_factory=dict)
    test_accuracy: float | None = None
    test_accuracy_one_view: float | None = None
    test_loss_nats: float | None = None
    evaluation_views: int = 1
    num_parameters: int
    model_float32_bytes: int
    model_packed_bytes: int | None = None
    weights_kept_fraction: float = 1.0
    checkpoint_raw_bytes: int
    checkpoint_stored_bytes: int
    num_checkpoints: int | None = None
    num_keyframes: int | None = None
    checkpoint_exact_bytes: int | None = None
    checkpoint_delta_ratio: float | None = None
    checkpoint_bytes_per_weight: float | None = None
    peak_memory_bytes: int | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    command: str | None = None
    finished_at: str | None = None
    sample_text: str | None = None
    restored_sample_text: str | None = None
    sample_rule: str | None = None
    pruning: Mapping[str, float] = field(default_factory=dict)
    class_keep_rates: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """All keys as JSON values; a number that is not finite becomes None, because JSON has no word for it."""
        values = {key.name: getattr(self, key.name) for key in dataclasses.fields(self)}
        return {name: dict(value) if isinstance(value, Mapping) else _finite(value) for name, value in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The summary in ``values``; keys that this version does not know are left out.

        Raises: FormatError - a key is missing or its value is of the wrong type.
        """
        keys = dataclasses.fields(cls)
        required = [
            key.name
            for key in keys
            if key.default is dataclasses.MISSING and key.default_factory is dataclasses.MISSING
        ]
        missing = [name for name in required if name not in values]
        if missing:
            raise FormatError(f"the summary of the run lacks {', '.join(missing)}")
        known = {key.name: _checked(key.name, values[key.name]) for key in keys if key.name in values}
        return cls(**known)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _checked(name: str, value: Any) -> Any:
    if value is None and name in _NUMBERS:
        return math.nan  # how to_dict() stores a number that is not finite
    if _is_valid(name, value):
        return value
    raise FormatError(f"the summary of the run has {name} = {value!r}, which is not {_expected(name)}")


def _is_valid(name: str, value: Any) -> bool:
    if value is None:
        return name in _OPTIONAL_COUNTS + _OPTIONAL_NUMBERS + _OPTIONAL_TEXTS
    if name in _TEXTS + _OPTIONAL_TEXTS:
        return isinstance(value, str)
    if name in _COUNTS + _OPTIONAL_COUNTS:
        return isinstance(value, int) and not isinstance(value, bool)
    if name in _NUMBERS + _OPTIONAL_NUMBERS:
        return isinstance(value, int | float) and not isinstance(value, bool)
    inner: type | Any = str if name == "versions" else int | float
    return isinstance(value, Mapping) and all(isinstance(part, inner) for part in value.values())


def _expected(name: str) -> str:
    if name in _TEXTS + _OPTIONAL_TEXTS:
        return "a text"
    if name in _COUNTS + _OPTIONAL_COUNTS:
        return "a whole number"
    return "a number" if name in _NUMBERS + _OPTIONAL_NUMBERS else "a table of values"
