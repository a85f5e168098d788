"""Runs of one recipe at several gammas beside each other: the curves of size against accuracy."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean

from scrimp.report.compression_section import epoch_time_figure, epoch_times
from scrimp.report.figures import Figure, Line, line_chart
from scrimp.report.record import RunRecord
from scrimp.report.section import Section, Table
from scrimp.report.units import format_bytes, format_number, format_seconds

_NUM_TIMED = 3  # runs in the figure of epoch times; it has three colours


@dataclass(frozen=True)
class SweepPoint:
    """What one finished run came to. ``gamma`` is None for a plain one, ``accuracy`` for one that has only a loss."""

    gamma: float | None
    seed: int
    accuracy: float | None
    loss_nats: float
    size_bytes: int
    float32_bytes: int
    weights_kept_fraction: float
    train_seconds: float


def sweep_points(records: Sequence[RunRecord]) -> list[SweepPoint]:
    """The finished runs among ``records``, plain ones first, then by gamma and seed. Plain ones have float32 size."""
    points = []
    for record in records:
        told = record.summary
        if told is None or told.test_loss_nats is None:
            continue
        is_compressed = told.model_packed_bytes is not None
        points.append(
            SweepPoint(
                gamma=float(record.config["gamma"]) if is_compressed else None,
                seed=told.seed,
                accuracy=told.test_accuracy,
                loss_nats=told.test_loss_nats,
                size_bytes=told.model_packed_bytes or told.model_float32_bytes,
                float32_bytes=told.model_float32_bytes,
                weights_kept_fraction=told.weights_kept_fraction,
                train_seconds=told.train_seconds,
            )
        )
    return sorted(points, key=lambda one: (one.gamma is not None, one.gamma or 0.0, one.seed))


def sweep_figures(records: Sequence[RunRecord]) -> list[Figure]:
    """Size against accuracy (or loss), weights left against it, and time of an epoch against weights left.

    One dot for each run that finished, in two curves: at each gamma, and the plain run or runs, at full size.
    """
    points = sweep_points(records)
    if not any(point.gamma is not None for point in points):
        return []
    figures = [
        _against(
            points, "Size and quality", "size, % of float32", lambda one: 100 * one.size_bytes / one.float32_bytes
        ),
        _against(points, "Weights and quality", "weights left, %", lambda one: 100 * one.weights_kept_fraction),
    ]
    timed = [(f"gamma {record.config['gamma']:g}", epoch_times(record)) for record in records]
    timed = [(name, pairs) for name, pairs in timed if len(pairs) > 1]
    if timed:
        # those that shrank most show most
        figures.append(epoch_time_figure(sorted(timed, key=lambda one: one[1][0][0])[:_NUM_TIMED]))
    return figures


def sweep_section(records: Sequence[RunRecord]) -> Section | None:
    """The figures, and a table of the means at each gamma; None with fewer than two compressed runs that finished."""
    points = sweep_points(records)
    if sum(point.gamma is not None for point in points) < 2:
        return None
    gammas = list(dict.fromkeys(point.gamma for point in points))
    rows = [_row([point for point in points if point.gamma == gamma]) for gamma in gammas]
    return Section(
        "Size against quality",
        note="One run for each dot. Sizes are those of the files, with all that they take; the plain network is "
        "counted as float32.",
        figures=tuple(sweep_figures(records)),
        tables=(
            Table(("gamma", "runs", "size", "of float32", "weights left", _quality_name(points), "time"), tuple(rows)),
        ),
    )


def _row(same: Sequence[SweepPoint]) -> tuple[str, ...]:
    size = mean(point.size_bytes for point in same)
    quality = mean(_quality(point) for point in same)
    return (
        "plain" if same[0].gamma is None else f"{same[0].gamma:g}",
        f"{len(same)}",
        format_bytes(size),
        f"{100 * size / same[0].float32_bytes:.2f} %",
        f"{100 * mean(point.weights_kept_fraction for point in same):.1f} %",
        f"{quality:.2f}" if same[0].accuracy is not None else format_number(quality),
        format_seconds(mean(point.train_seconds for point in same)),
    )


def _against(points: Sequence[SweepPoint], title: str, x_label: str, pick: Callable[[SweepPoint], float]) -> Figure:
    lines = []
    for name, chosen in (
        ("compressed", [point for point in points if point.gamma is not None]),
        ("plain", [point for point in points if point.gamma is None]),
    ):
        pairs = sorted((pick(point), _quality(point)) for point in chosen)
        lines.append(Line(name, [x for x, _ in pairs], [y for _, y in pairs], is_marked=True))
    smallest = min((point for point in points if point.gamma is not None), key=pick)
    return line_chart(
        [line for line in lines if line.y],
        title=title,
        unit=_quality_name(points),
        x_label=x_label,
        description=f"{_quality_name(points)} {format_number(_quality(smallest))} at {pick(smallest):.2f} {x_label}.",
    )


def _quality(point: SweepPoint) -> float:
    return point.loss_nats if point.accuracy is None else 100 * point.accuracy


def _quality_name(points: Sequence[SweepPoint]) -> str:
    return "test loss, nats" if any(point.accuracy is None for point in points) else "test accuracy, %"
