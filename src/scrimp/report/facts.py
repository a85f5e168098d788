"""The few numbers that sum up a run, as words; the terminal table and the page show the same ones."""

import math
from dataclasses import dataclass

from scrimp.report.record import RunRecord
from scrimp.report.summary import Summary
from scrimp.report.units import (
    format_bytes,
    format_bytes_exact,
    format_count,
    format_number,
    format_percent,
    format_ratio,
    format_seconds,
)


@dataclass(frozen=True)
class Fact:
    """One number for people: what it is, its value, its unit if that is long, and a remark on its size."""

    label: str
    value: str
    note: str = ""
    unit: str = ""


def facts(record: RunRecord) -> tuple[Fact, ...]:
    """What there is to say about a run: its summary, or where it stands when it has not finished."""
    return summary_facts(record.summary) if record.summary is not None else _facts_so_far(record)


def summary_facts(summary: Summary) -> tuple[Fact, ...]:
    """The headline numbers of a finished run, the result first."""
    return (
        *_results(summary.test_accuracy, summary.test_loss_nats, _views(summary)),
        Fact(
            "training time",
            format_seconds(summary.train_seconds),
            f"{format_number(summary.num_epochs)} epochs, {format_count(summary.num_steps)} steps; "
            f"{format_seconds(summary.total_seconds)} in all",
        ),
        _visits(summary),
        Fact("speed", format_count(summary.examples_per_second), _hardware(summary), unit="examples/s"),
        _model(summary),
        _checkpoints(summary),
    )


def _results(accuracy: float | None, loss_nats: float | None, views: str = "") -> tuple[Fact, ...]:
    if accuracy is not None:
        loss = "" if loss_nats is None else f"test loss {format_number(loss_nats)} nats"
        return (Fact("test accuracy", format_percent(accuracy), "; ".join(filter(None, [views, loss]))),)
    if loss_nats is not None:
        note = f"{format_number(loss_nats / math.log(2))} bits per character"
        return (Fact("test loss", format_number(loss_nats), note, unit="nats per character"),)
    return ()


def _views(summary: Summary) -> str:
    """What several views per test image gave, and cost."""
    if summary.evaluation_views == 1 or summary.test_accuracy_one_view is None:
        return ""
    number, alone = summary.evaluation_views, format_percent(summary.test_accuracy_one_view)
    return f"mean of {number} views, {number} times the inference; {alone} with one"


def _visits(summary: Summary) -> Fact:
    visits, full = summary.sample_visits, summary.sample_visits_full
    share = f" ({format_percent(visits / full, digits=1)})" if full and visits != full else ""
    note = (
        "as many as training on all of the data"
        if visits == full
        else f"of {format_count(full)} in full training{share}"
    )
    rule = "" if summary.sample_rule is None else f"; rule: {summary.sample_rule}"
    return Fact("samples visited", format_count(visits), note + rule)


def _hardware(summary: Summary) -> str:
    parts = [f"{summary.threads} thread{'' if summary.threads == 1 else 's'}", summary.precision]
    if summary.world_size > 1:
        parts.insert(0, f"{summary.world_size} processes")
    if summary.peak_memory_bytes is not None:
        parts.append(f"peak memory {format_bytes(summary.peak_memory_bytes)}")
    return ", ".join(parts)


def _model(summary: Summary) -> Fact:
    parameters = f"{format_count(summary.num_parameters)} parameters"
    if summary.weights_kept_fraction < 1:
        parameters += f", {format_percent(summary.weights_kept_fraction, digits=1)} of the weights kept"
    full, packed = summary.model_float32_bytes, summary.model_packed_bytes
    if packed is None:
        return Fact("model", format_bytes(full), f"{format_bytes_exact(full)} in float32; {parameters}")
    note = f"{format_bytes_exact(packed)} packed, {format_ratio(full, packed)} smaller than float32; {parameters}"
    return Fact("model", format_bytes(packed), note)


def _checkpoints(summary: Summary) -> Fact:
    stored, raw = summary.checkpoint_stored_bytes, summary.checkpoint_raw_bytes
    if not stored:
        return Fact("checkpoints", "none", "none were kept")
    of_raw = (
        f"of {format_bytes(raw)} raw ({format_ratio(raw, stored)} smaller)" if stored < raw else "stored as they are"
    )
    notes = [f"{format_bytes_exact(stored)}, {of_raw}"]
    if summary.num_checkpoints:
        count, keyframes = summary.num_checkpoints, summary.num_keyframes or 0
        notes.append(f"{format_count(count)} kept, {format_count(keyframes)} of them keyframe{'s' * (keyframes != 1)}")
    if summary.checkpoint_delta_ratio is not None:
        notes.append(f"a difference {format_number(summary.checkpoint_delta_ratio)}x smaller")
    return Fact("checkpoints", format_bytes(stored), "; ".join(notes))


def _facts_so_far(record: RunRecord) -> tuple[Fact, ...]:
    if not record.metrics:
        return ()
    line = record.metrics[-1]
    found = list(_results(record.last("evaluation", "test_accuracy"), record.last("evaluation", "test_loss_nats")))
    loss = record.last("step", "train_loss")
    if loss is not None:
        found.append(Fact("train loss", format_number(loss), "at the last log point"))
    epochs = f"{format_number(line['epoch'])} epochs, {format_count(line['step'])} steps so far"
    found.append(Fact("training time", format_seconds(line["seconds"]), epochs))
    speed = record.last("step", "examples_per_second")
    if speed is not None:
        found.append(Fact("speed", format_count(speed), "at the last log point", unit="examples/s"))
    return tuple(found)
