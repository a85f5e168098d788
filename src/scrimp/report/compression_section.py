"""The section of a run's page about what compression made of its model."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from scrimp.report.architecture import architecture_of
from scrimp.report.figures import Figure, Line, line_chart
from scrimp.report.record import RunRecord
from scrimp.report.section import Section, Table
from scrimp.report.units import byte_unit, format_bytes, format_number

_STEP_PHASES = ("data", "forward", "backward", "optimizer")


def compression(record: RunRecord) -> Section | None:
    """The size of the model and the time of an epoch as weights go, and the architecture before and after."""
    sizes = record.series("step", "packed_bytes")
    if not sizes:
        return None
    factor, unit = byte_unit(max(point.value for point in sizes))
    kept = record.series("step", "weights_kept_fraction")
    figures: list[Figure] = [
        line_chart(
            [Line("packed", [point.epoch for point in sizes], [point.value / factor for point in sizes])],
            title="Size of the model", unit=unit, log_y=True, x_label="epoch",
            description=f"From {format_bytes(sizes[0].value)} to {format_bytes(sizes[-1].value)}.",
        ),
        line_chart(
            [Line("weights", [point.epoch for point in kept], [100 * point.value for point in kept])],
            title="Weights left", unit="%", from_zero=True, x_label="epoch",
            description=f"{100 * kept[-1].value:.1f} % are left.",
        ),
    ]  # fmt: skip
    by_weights = epoch_times(record)
    if len(by_weights) > 1:
        figures.append(epoch_time_figure([("this run", by_weights)]))
    tables: tuple[Table, ...] = ()
    ended = record.events("compression")
    if ended:
        told = ended[-1]
        figures += [figure for figure in (architecture_of(record),) if figure is not None]
        parts = [(name, format_bytes(told[f"{name}_bytes"])) for name in ("code", "scale", "tensor", "header")]
        parts.append(("in all", format_bytes(told["packed_bytes"])))
        tables = (_layer_table(told), Table(("part of the packed file", ""), tuple(parts)))
    return Section(
        "Compression",
        note="Sizes are those of a packed file with all that it takes: codes, scales, biases, norms and names.",
        figures=tuple(figures),
        tables=tables,
    )


def epoch_times(record: RunRecord) -> list[tuple[float, float]]:
    """Of each epoch the fraction of weights left in its middle and the seconds of its steps, by rising fraction.

    Evaluation, checkpoints and what removal takes are not in it. Empty for runs that were not compressed.
    """
    kept = record.series("step", "weights_kept_fraction")
    if not kept:
        return []
    pairs = []
    ends = [0.0]
    for line in record.events("epoch"):
        ends.append(line["epoch"])
    for (start, end), line in zip(pairwise(ends), record.events("epoch"), strict=True):
        within = [point.value for point in kept if start < point.epoch <= end]
        if within and end - start > 0:
            seconds = sum(line.get(f"{phase}_seconds", 0.0) for phase in _STEP_PHASES)
            pairs.append((sum(within) / len(within), seconds / (end - start)))
    return sorted(pairs)


def epoch_time_figure(runs: list[tuple[str, list[tuple[float, float]]]]) -> Figure:
    """Seconds of an epoch over the percentage of weights left; one curve of dots for each (name, pairs) of ``runs``."""
    lines = [
        Line(name, [100 * kept for kept, _ in pairs], [seconds for _, seconds in pairs], is_marked=True)
        for name, pairs in runs
    ]
    least, most = (pick(runs[0][1]) for pick in (min, max))
    return line_chart(
        lines,
        title="Time of an epoch",
        unit="seconds of its steps",
        x_label="weights left, %",
        from_zero=True,
        description=f"{format_number(most[1])} s with {100 * most[0]:.0f} % of the weights, {format_number(least[1])} "
        f"s with {100 * least[0]:.0f} %. What is left at no weights does not depend on the model.",
    )


def _layer_table(told: Mapping[str, Any]) -> Table:
    rows = [
        (str(name), f"{before:,}", f"{weights:,}", f"{100 * weights / max(1, before):.1f}%")
        for name, _, _, before, weights, _ in told["layers"]
    ]
    return Table(("layer", "weights before", "left", ""), tuple(rows))
