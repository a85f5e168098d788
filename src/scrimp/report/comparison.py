"""Several ways to train one recipe, over the same seeds: what each spent, and what it reached.

A comparison is a directory with ``plan.json`` and one run directory per variant and seed. Nothing else is stored; the
numbers come from the runs' own records.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from scrimp.errors import DataNotFoundError, FormatError
from scrimp.report.record import CONFIG_NAME, RunRecord, read_run
from scrimp.report.statistics import Interval, interval
from scrimp.report.summary import Summary
from scrimp.report.units import format_bytes, format_count, format_number, format_percent, format_seconds

PLAN_NAME = "plan.json"
PLAIN = "plain"


@dataclass(frozen=True)
class Variant:
    """One way to train. ``settings`` are those in which it differs from plain training; ``records`` are by seed."""

    name: str
    meaning: str
    settings: Mapping[str, Any]
    records: Mapping[int, RunRecord] = field(default_factory=dict)

    def summaries(self) -> dict[int, Summary]:
        """Those of the seeds that have finished."""
        return {seed: record.summary for seed, record in self.records.items() if record.summary is not None}


@dataclass(frozen=True)
class Comparison:
    """The variants of one recipe, in the order of the plan."""

    directory: Path
    recipe: str
    seeds: tuple[int, ...]
    command: str
    num_at_once: int
    variants: tuple[Variant, ...]

    def finished(self) -> tuple[Variant, ...]:
        """The variants of which at least one run has finished."""
        return tuple(variant for variant in self.variants if variant.summaries())

    @property
    def plain(self) -> Variant | None:
        """Plain training, if it is among them and has finished."""
        return next((variant for variant in self.finished() if variant.name == PLAIN), None)

    @property
    def is_complete(self) -> bool:
        """Whether every run has finished."""
        return all(len(variant.summaries()) == len(self.seeds) for variant in self.variants)

    def any_summary(self) -> Summary | None:
        """One of the finished runs, for what they have in common."""
        return next((summary for variant in self.finished() for summary in variant.summaries().values()), None)


@dataclass(frozen=True)
class Measure:
    """A number of a run: how it is called, read and written. ``is_cost``: less is better, and its ratio is a saving."""

    key: str
    label: str
    of: Callable[[Summary], float | None]
    show: Callable[[float], str]
    is_cost: bool = True


@dataclass(frozen=True)
class Cell:
    """A measure over the seeds of a variant. ``ratio`` is the mean over seeds of its ratio to plain training."""

    mean: float
    std: float | None
    least: float
    greatest: float
    num: int
    ratio: float | None


def _model_bytes(summary: Summary) -> float:
    return summary.model_float32_bytes if summary.model_packed_bytes is None else summary.model_packed_bytes


def _whole_store(summary: Summary) -> float | None:
    stored = summary.checkpoint_stored_bytes
    return summary.checkpoint_raw_bytes / stored if stored else None


def _times(value: float) -> str:
    return f"{value:.1f}x"


ACCURACY = Measure("test_accuracy", "accuracy", lambda s: s.test_accuracy, format_percent, is_cost=False)
LOSS = Measure("test_loss_nats", "test loss", lambda s: s.test_loss_nats, lambda v: f"{v:.4f}", is_cost=False)
VISITS = Measure("sample_visits", "visits", lambda s: s.sample_visits, format_count)
STEPS = Measure("num_steps", "steps", lambda s: s.num_steps, format_count)
SECONDS = Measure("train_seconds", "time", lambda s: s.train_seconds, format_seconds)
CPU_SECONDS = Measure("cpu_seconds", "processor time", lambda s: s.cpu_seconds, format_seconds)
SPEED = Measure("examples_per_second", "examples/s", lambda s: s.examples_per_second, format_count, is_cost=False)
MODEL = Measure("model_bytes", "model", _model_bytes, format_bytes)
CHECKPOINTS = Measure("checkpoint_bytes", "checkpoints", lambda s: s.checkpoint_stored_bytes, format_bytes)
DIFFERENCE = Measure("checkpoint_delta_ratio", "per difference", lambda s: s.checkpoint_delta_ratio, _times, False)
STORE = Measure("checkpoint_store_ratio", "whole store", _whole_store, _times, is_cost=False)
ENERGY = Measure("energy_joules", "energy", lambda s: s.energy_joules, lambda v: f"{format_number(v)} J")

MEASURES = (
    ACCURACY, LOSS, VISITS, STEPS, SECONDS, CPU_SECONDS, SPEED, MODEL, CHECKPOINTS, DIFFERENCE, STORE, ENERGY
)  # fmt: skip


def read_comparison(directory: Path) -> Comparison:
    """The comparison in ``directory`` with the records of its runs, finished or not.

    Raises: DataNotFoundError - there is none. FormatError - its plan or a record is damaged.
    """
    path = directory / PLAN_NAME
    if not path.is_file():
        raise DataNotFoundError(f"{directory} holds no comparison ({PLAN_NAME} is missing)")
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
        seeds = tuple(int(seed) for seed in plan["seeds"])
        variants = tuple(
            Variant(one["name"], one["meaning"], one["settings"], _records(directory, one["name"], seeds))
            for one in plan["variants"]
        )
        return Comparison(directory, plan["recipe"], seeds, plan["command"], int(plan["num_at_once"]), variants)
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{path} is damaged or not written by scrimp compare ({error!r})") from error


def run_name(variant: str, seed: int) -> str:
    """The name of a run's directory in that of its comparison."""
    return f"{variant}-seed{seed}"


def _records(directory: Path, variant: str, seeds: tuple[int, ...]) -> dict[int, RunRecord]:
    found = {seed: directory / run_name(variant, seed) for seed in seeds}
    return {seed: read_run(path) for seed, path in found.items() if (path / CONFIG_NAME).exists()}


def measures_of(comparison: Comparison) -> tuple[Measure, ...]:
    """The measures that any of its runs has; text models have no accuracy, few machines tell their energy.

    Energy is left out where runs shared the machine, since what is read is the energy of all of it; the loss is left
    out where there is an accuracy.
    """
    summaries = [summary for variant in comparison.finished() for summary in variant.summaries().values()]
    present = [m for m in MEASURES if any(m.of(summary) is not None for summary in summaries)]
    hidden = {LOSS.key} if ACCURACY in present else set()
    if comparison.num_at_once > 1:
        hidden.add(ENERGY.key)
    return tuple(measure for measure in present if measure.key not in hidden)


def cell(comparison: Comparison, variant: Variant, measure: Measure) -> Cell | None:
    """``measure`` over the finished seeds of ``variant``; ``None`` where none has it."""
    values = _values(variant, measure)
    if not values:
        return None
    numbers = list(values.values())
    plain = {} if comparison.plain is None else _values(comparison.plain, measure)
    ratios = [value / plain[seed] for seed, value in values.items() if plain.get(seed)]
    return Cell(
        mean(numbers), stdev(numbers) if len(numbers) > 1 else None, min(numbers), max(numbers), len(numbers),
        mean(ratios) if ratios and measure.is_cost else None,
    )  # fmt: skip


def result_measure(comparison: Comparison) -> Measure:
    """What the recipe is judged by: accuracy, or the loss where there is none."""
    summary = comparison.any_summary()
    return LOSS if summary is not None and summary.test_accuracy is None else ACCURACY


def difference(comparison: Comparison, variant: Variant) -> Interval | None:
    """The result of ``variant`` minus that of plain training, paired by seed; ``None`` without such a pair."""
    plain, measure = comparison.plain, result_measure(comparison)
    if plain is None or variant.name == plain.name:
        return None
    ours, theirs = _values(variant, measure), _values(plain, measure)
    pairs = [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]
    return interval(pairs) if pairs else None


def verdict(comparison: Comparison, variant: Variant) -> str:
    """What the seeds say about the result of ``variant`` beside plain training, in one sentence; empty without it."""
    found = difference(comparison, variant)
    if found is None:
        return ""
    is_loss = result_measure(comparison) is LOSS
    factor, unit, digits = (1.0, "nats", 4) if is_loss else (100.0, "points", 2)
    size = f"{abs(factor * found.mean):.{digits}f}"
    if float(size) == 0:
        start = f"{variant.name} reached what plain training did"
    else:
        start = f"{variant.name} is {size} {unit} {'higher' if found.mean > 0 else 'lower'} than plain training"
    if found.half_width is None:
        return f"{start}; with one seed nothing can be said about chance."
    low, high = (factor * (found.mean + sign * found.half_width) for sign in (-1, 1))
    spread = f"95 % interval of the difference {low:+.{digits}f} to {high:+.{digits}f}, {found.num} seeds"
    if found.is_told_from_zero:
        is_better = (found.mean < 0) == is_loss
        return f"{start} ({spread}): {'better' if is_better else 'worse'} by more than chance."
    few = "too few seeds to tell a difference" if found.num < 3 else "no difference that these seeds can tell"
    return f"{start} ({spread}): {few}."


def comparison_dict(comparison: Comparison) -> dict[str, Any]:
    """Everything in the table as JSON values, with the runs that it is made of."""
    summary = comparison.any_summary()
    return {
        "recipe": comparison.recipe,
        "command": comparison.command,
        "seeds": list(comparison.seeds),
        "num_at_once": comparison.num_at_once,
        "is_complete": comparison.is_complete,
        "device": None if summary is None else summary.device,
        "versions": {} if summary is None else dict(summary.versions),
        "variants": [_variant_dict(comparison, variant) for variant in comparison.finished()],
    }


def _variant_dict(comparison: Comparison, variant: Variant) -> dict[str, Any]:
    cells = {measure.key: cell(comparison, variant, measure) for measure in measures_of(comparison)}
    found = difference(comparison, variant)
    return {
        "name": variant.name,
        "meaning": variant.meaning,
        "settings": dict(variant.settings),
        **{key: None if one is None else vars(one) for key, one in cells.items()},
        "difference": None if found is None else vars(found),
        "verdict": verdict(comparison, variant),
        "runs": {str(seed): _run_dict(summary) for seed, summary in variant.summaries().items()},
    }


def _run_dict(summary: Summary) -> dict[str, Any]:
    return {measure.key: measure.of(summary) for measure in MEASURES}


def _values(variant: Variant, measure: Measure) -> dict[int, float]:
    values = {seed: measure.of(summary) for seed, summary in variant.summaries().items()}
    return {seed: value for seed, value in values.items() if value is not None}
