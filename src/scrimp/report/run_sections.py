"""The sections of a run's page, in the order of reading: each a function from the record to a section, or to None.

To add a section, write one more such function and name it in ``SECTIONS``. A section is data; the template shows
whatever figures, tables and text it has and escapes everything but finished figures.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from scrimp.report.compression_section import compression
from scrimp.report.figures import Figure, Line, bar_chart, line_chart, stacked_bar
from scrimp.report.network import ladder, norm_scales, profile, whitening
from scrimp.report.record import Point, RunRecord
from scrimp.report.section import Section, Table
from scrimp.report.thumbnails import visit_figures
from scrimp.report.units import byte_unit, format_bytes, format_number, format_ratio, format_seconds

_MAX_CLASSES = 20
PHASES = ("data", "forward", "backward", "optimizer", "evaluation", "checkpoint", "other")


def notes(record: RunRecord) -> Section | None:
    """What happened on the way: interruptions, resumptions, warnings."""
    pairs = tuple((f"step {line['step']:,}", str(line.get("text", ""))) for line in record.events("note"))
    return Section("Notes", pairs=pairs) if pairs else None


def curves(record: RunRecord) -> Section | None:
    """Loss, accuracy, learning rate and speed over the epochs."""
    is_text = record.last("evaluation", "test_loss_nats") is not None and not record.series(
        "evaluation", "test_accuracy"
    )
    losses = [
        _line("train", record.series("step", "train_loss")),
        _line("test", record.series("evaluation", "test_loss_nats"), is_marked=True),
    ]
    accuracies = [
        _line("train", record.series("step", "train_accuracy"), factor=100),
        _line("test", record.series("evaluation", "test_accuracy"), factor=100, is_marked=True),
    ]
    rates = [_line("rate", record.series("step", "learning_rate"))]
    speeds = [_line("examples/s", record.series("step", "examples_per_second"))]
    figures = (
        _over_epochs(losses, title="Loss", unit="nats per character" if is_text else "nats", log_y=_is_wide(losses)),
        _over_epochs(accuracies, title="Accuracy", unit="%"),
        _over_epochs(rates, title="Learning rate", from_zero=True),
        _over_epochs(speeds, title="Speed", unit="examples per second", from_zero=True),
    )
    drawn = tuple(figure for figure in figures if figure is not None)
    return Section("Training", figures=drawn) if drawn else None


def timing(record: RunRecord) -> Section | None:
    """Seconds of each epoch, and what they were spent on."""
    epochs = [point.value for point in record.series("epoch", "epoch_seconds")]
    phases = _phase_seconds(record)
    figures = []
    if phases:
        longest = max(phases, key=phases.__getitem__)
        figures.append(
            stacked_bar(
                list(phases.items()),
                title="Where the time went",
                description=f"{format_seconds(sum(phases.values()))} in {len(phases)} parts; most of it in {longest}.",
            )
        )
    if epochs:
        figures.append(
            bar_chart(
                epochs,
                title="Time per epoch",
                description=f"{len(epochs)} epochs of {format_seconds(min(epochs))} to {format_seconds(max(epochs))}.",
                name="seconds",
                x_label="epoch",
                unit="seconds",
            )
        )
    return Section("Time", figures=tuple(figures)) if figures else None


def _known(record: RunRecord, key: str) -> list[Point]:
    """The epochs with such a value; the first has none, because it is planned before there are scores."""
    return [point for point in record.series("epoch", key) if not math.isnan(point.value)]


def pruning(record: RunRecord) -> Section | None:
    """What sample pruning left out, of which scores, how old they were, and what it cost."""
    pruned = record.series("epoch", "pruned_fraction")
    if not pruned:
        return None
    kept = [point._replace(value=1 - point.value) for point in pruned]
    sizes, totals = record.series("epoch", "effective_sample_size"), record.series("epoch", "num_samples")
    worth = [size._replace(value=size.value / total.value) for size, total in zip(sizes, totals, strict=False)]
    ages = [_line(name, _known(record, f"score_age_{name}_epochs"), is_marked=True) for name in ("mean", "max")]
    scores = [_line(f"{level} %", _known(record, f"score_quantile_{level}")) for level in (5, 50, 95)]
    figures = (
        _over_epochs(
            [
                _line("visited", kept, factor=100, is_marked=True),
                _line("worth, by their weights", worth, factor=100, is_marked=True),
            ],
            title="Samples visited per epoch",
            unit="%",
            from_zero=True,
        ),
        _over_epochs(scores, title="Scores (last losses), by quantile", log_y=_is_wide(scores)),
        _over_epochs(ages, title="Age of the scores", unit="epochs", from_zero=True),
    )
    rows = [("left out, mean over the epochs", f"{100 * sum(p.value for p in pruned) / len(pruned):.1f} %")]
    seconds = [point.value for point in record.series("epoch", "pruning_seconds")]
    rows.append(("time that planning took", format_seconds(sum(seconds))))
    rows.append(("losses that were not finite", f"{record.last('epoch', 'num_nonfinite_scores') or 0:,.0f}"))
    rates = record.summary.class_keep_rates if record.summary is not None else {}
    for name in sorted(rates, key=rates.__getitem__)[:_MAX_CLASSES]:
        rows.append((f"visited of the class {name}", f"{100 * rates[name]:.1f} %"))
    note = f"The {_MAX_CLASSES} classes that were visited least." if len(rates) > _MAX_CLASSES else ""
    return Section(
        "Samples",
        note=note,
        figures=(*visit_figures(record), *(figure for figure in figures if figure is not None)),
        tables=(Table(("pruning", ""), tuple(rows)),),
    )


def checkpoints(record: RunRecord) -> Section | None:
    """The bytes of each checkpoint over the steps, how much each kind of tensor shrank, and what that cost."""
    stored, raw = record.series("checkpoint", "stored_bytes"), record.series("checkpoint", "raw_bytes")
    if not stored:
        return None
    figures = [_checkpoint_sizes(record), _ratio_by_role(record), _error_by_role(record)]
    total_stored, total_raw = sum(point.value for point in stored), sum(point.value for point in raw)
    rows = [
        ("raw", format_bytes(total_raw), format_bytes(total_raw / len(stored))),
        ("written", format_bytes(total_stored), format_bytes(total_stored / len(stored))),
    ]
    history = sum(point.value for point in record.series("checkpoint", "history_bytes"))
    if history:
        rows.append(("of which history, which stays", format_bytes(history), format_bytes(history / len(stored))))
        rows.append(("raw / history", format_ratio(total_raw, history), ""))
    else:
        rows.append(("raw / written", format_ratio(total_raw, total_stored), ""))
    seconds = [point.value for point in record.series("checkpoint", "save_seconds")]
    if seconds:
        rows.append(("time to save", format_seconds(sum(seconds)), format_seconds(sum(seconds) / len(seconds))))
    return Section(
        "Checkpoints",
        note="Every checkpoint that the run wrote, those no longer kept among them. Only the newest is exact as well; "
        "behind it history is as exact as its codec.",
        figures=tuple(figure for figure in figures if figure is not None),
        tables=(Table((f"{len(stored):,} saved", "in all", "each"), tuple(rows)), *_whole_store(record)),
    )


def _checkpoint_sizes(record: RunRecord) -> Figure:
    stored, raw = record.series("checkpoint", "stored_bytes"), record.series("checkpoint", "raw_bytes")
    history = record.series("checkpoint", "history_bytes")
    factor, unit = byte_unit(max(point.value for point in (*stored, *raw)))
    named = [("history", history)] if history else [("stored", stored)]
    if history and any(a.value != b.value for a, b in zip(stored, history, strict=False)):
        named.append(("with exact copy", stored))
    if any(abs(a.value - b.value) > 0.01 * b.value for a, b in zip(named[0][1], raw, strict=False)):
        named.append(("raw", raw))
    lines = [_line(name, points, factor=1 / factor, is_marked=True, over_steps=True) for name, points in named]
    return line_chart(
        lines, title="Size of each checkpoint", description=_described(lines), x_label="step", unit=unit, from_zero=True
    )


def _ratio_by_role(record: RunRecord) -> Figure | None:
    """Raw over coded bytes of each role, where checkpoints are differences."""
    sums: dict[str, list[float]] = {}
    for _, roles in _roles(record):
        for role, numbers in roles.items():
            one = sums.setdefault(role, [0.0, 0.0])
            one[0] += numbers.get("raw_bytes", 0.0)
            one[1] += numbers.get("coded_bytes", 0.0)
    ratios = {role: raw / coded for role, (raw, coded) in sums.items() if coded}
    if not ratios:
        return None
    texts = ", ".join(f"{role} {ratio:.1f}x" for role, ratio in ratios.items())
    return bar_chart(
        list(ratios.values()),
        title="How much smaller, by kind of tensor",
        description=f"Raw over stored bytes in differences: {texts}.",
        name="times smaller",
        x_label=" - ".join(f"{number} {role}" for number, role in enumerate(ratios, start=1)),
        unit="times",
    )


def _error_by_role(record: RunRecord) -> Figure | None:
    """The largest relative error of any tensor of a role, checkpoint by checkpoint."""
    lines: dict[str, tuple[list[float], list[float]]] = {}
    for step, roles in _roles(record):
        for role, numbers in roles.items():
            if error := numbers.get("relative_error"):
                x, y = lines.setdefault(role, ([], []))
                x.append(float(step))
                y.append(100 * error)
    drawn = [Line(role, x, y, True) for role, (x, y) in lines.items()]
    if not drawn:
        return None
    return line_chart(
        drawn,
        title="Error along the history",
        description=_described(drawn),
        x_label="step",
        unit="% of the tensor's rms, worst tensor",
        log_y=_is_wide(drawn),
        from_zero=not _is_wide(drawn),
    )


def _roles(record: RunRecord) -> list[tuple[int, Mapping[str, Mapping[str, float]]]]:
    """Steps of checkpoints that are differences, with what is known of each role."""
    found = []
    for line in record.events("checkpoint"):
        roles = line.get("by_role")
        if isinstance(roles, Mapping) and not line.get("is_keyframe") and all(map(_is_numbers, roles.values())):
            found.append((line["step"], roles))
    return found


def _is_numbers(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(number, int | float) for number in value.values())


def _whole_store(record: RunRecord) -> tuple[Table, ...]:
    """What the run leaves on the disk, from its summary."""
    summary = record.summary
    if summary is None or not summary.num_checkpoints or not summary.checkpoint_stored_bytes:
        return ()
    raw, stored = summary.checkpoint_raw_bytes, summary.checkpoint_stored_bytes
    rows = [
        ("checkpoints", f"{summary.num_checkpoints:,}"),
        ("of them keyframes", f"{summary.num_keyframes or 0:,}"),
        ("every byte on the disk", format_bytes(stored)),
        ("of which exact copies", format_bytes(summary.checkpoint_exact_bytes or 0)),
        ("whole store: raw / stored", format_ratio(raw, stored)),
    ]
    if summary.checkpoint_delta_ratio is not None:
        rows.append(("a difference alone: raw / stored", f"{summary.checkpoint_delta_ratio:.1f}x"))
    if summary.checkpoint_bytes_per_weight is not None:
        rows.append(("raw bytes for each weight of the model", f"{summary.checkpoint_bytes_per_weight:.2f}"))
    return (Table(("at the end", ""), tuple(rows)),)


def sample_text(record: RunRecord) -> Section | None:
    """What a language model wrote after training."""
    if record.summary is None or not record.summary.sample_text:
        return None
    return Section("Sample", note="Written by the model after training.", preformatted=record.summary.sample_text)


def restored_sample_text(record: RunRecord) -> Section | None:
    """What a language model writes with its last weights as the history of checkpoints has them."""
    summary = record.summary
    if summary is None or not summary.sample_text or not summary.restored_sample_text:
        return None
    before, after = summary.sample_text, summary.restored_sample_text
    num_alike = next((at for at, pair in enumerate(zip(before, after, strict=False)) if pair[0] != pair[1]), len(after))
    alike = f"Of {len(after)} characters the first {num_alike} are" if before != after else "All of it is"
    return Section(
        "Sample after a restore",
        note="From the same prompt with the same random numbers, by the model with its last weights as the history of "
        f"checkpoints has them. {alike} the same; a single other letter changes what follows.",
        preformatted=after,
    )


def configuration(record: RunRecord) -> Section | None:
    """Every setting of the run."""
    pairs = tuple(_flattened(record.config))
    return Section("Configuration", pairs=pairs) if pairs else None


def reproduction(record: RunRecord) -> Section | None:
    """The command that repeats the run, and the versions that it ran with."""
    if record.summary is None:
        return None
    pairs = tuple(record.summary.versions.items())
    command = record.summary.command or ""
    return Section("To repeat this run", pairs=pairs, command=command) if pairs or command else None


SECTIONS: tuple[Callable[[RunRecord], Section | None], ...] = (
    curves,
    timing,
    pruning,
    profile,
    norm_scales,
    whitening,
    ladder,
    compression,
    checkpoints,
    sample_text,
    restored_sample_text,
    notes,
    reproduction,
    configuration,
)


def _line(
    name: str, points: Sequence[Point], *, factor: float = 1.0, is_marked: bool = False, over_steps: bool = False
) -> Line:
    x = [float(point.step) if over_steps else point.epoch for point in points]
    return Line(name, x, [factor * point.value for point in points], is_marked)


def _over_epochs(
    lines: Sequence[Line], *, title: str, unit: str = "", log_y: bool = False, from_zero: bool = False
) -> Figure | None:
    present = [line for line in lines if line.y]
    if not present:
        return None
    return line_chart(
        # an absent curve stays in the list, so that "test" has the same colour in every figure
        lines if len(present) == len(lines) else present,
        title=title,
        description=_described(present),
        x_label="epoch",
        unit=unit,
        log_y=log_y,
        from_zero=from_zero,
    )


def _described(lines: Sequence[Line]) -> str:
    return " ".join(
        f"{line.name}: {len(line.y)} values from {format_number(line.y[0])} to {format_number(line.y[-1])}."
        for line in lines
    )


def _is_wide(lines: Sequence[Line]) -> bool:
    """Whether the values span so much that a linear axis would hide the end of the curve."""
    values = [value for line in lines for value in line.y if value > 0]
    return bool(values) and max(values) > 20 * min(values)


def _phase_seconds(record: RunRecord) -> dict[str, float]:
    """Seconds per phase, from the summary or else from the epochs so far; empty when none were taken."""
    if record.summary is not None and record.summary.phase_seconds:
        seconds = dict(record.summary.phase_seconds)
    else:
        seconds = {name: sum(p.value for p in record.series("epoch", f"{name}_seconds")) for name in PHASES}
    order = [*(name for name in PHASES if name in seconds), *(name for name in seconds if name not in PHASES)]
    # a phase that took no time stays in, so that each keeps its colour from run to run
    return {name: seconds[name] for name in order} if any(seconds.values()) else {}


def _flattened(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as dotted names, each with its value as text."""
    rows = []
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            rows.extend(_flattened(value, f"{prefix}{name}."))
        else:
            rows.append((f"{prefix}{name}", value if isinstance(value, str) else json.dumps(value, default=str)))
    return rows
