"""Sections of a run's page about its network and recipe: what its steps are spent on, its whitening filters, its norms'
scales, the ladder that it stands on.
"""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from scrimp.report.figures import Figure, Line, line_chart
from scrimp.report.named_bars import named_bars
from scrimp.report.record import RunRecord
from scrimp.report.section import Section, Table
from scrimp.report.units import format_number, format_percent, format_seconds

_MAX_FILTERS = 64
_SCALES = ("least", "median", "greatest")  # the page has three colours


def profile_rows(record: RunRecord) -> list[tuple[str, str, str, str]]:
    """The newest profile of a run: operation, time per step, share, calls per step; empty if there is none."""
    found = record.events("profile")
    if not found:
        return []
    told = found[-1]
    operations: Sequence[Mapping[str, Any]] = told["operations"]
    total = sum(one["seconds"] for one in operations) + told["other_seconds"]
    if not total:
        return []
    rows = [
        (
            str(one["name"]), format_seconds(one["seconds"]), format_percent(one["seconds"] / total, digits=1),
            format_number(one["calls"]),
        )
        for one in operations
    ]  # fmt: skip
    rest = told["other_seconds"]
    return [*rows, ("all others", format_seconds(rest), format_percent(rest / total, digits=1), "")]


def profile(record: RunRecord) -> Section | None:
    """What the steps that were profiled were spent on."""
    rows = profile_rows(record)
    if not rows:
        return None
    told = record.events("profile")[-1]
    clock = "time on the device" if told["clock"] == "device" else "processor time"
    return Section(
        "Where a step goes",
        note=f"By {clock} of each operation itself, mean of {told['num_steps']} steps; the whole trace is trace.json.",
        tables=(Table(("operation", "per step", "share"), tuple(_for_page(row) for row in rows)),),
    )


def _for_page(row: tuple[str, str, str, str]) -> tuple[str, ...]:
    name, seconds, share, _calls = row
    return name.removeprefix("aten::"), seconds, share


def whitening(record: RunRecord) -> Section | None:
    """The whitening filters as small pictures, with the variance of the patch component that each stands for."""
    found = record.events("whitening")
    if not found:
        return None
    filters, eigenvalues = found[-1]["filters"], found[-1]["eigenvalues"]
    shown = min(len(filters), _MAX_FILTERS)
    figures = (_filters_figure(filters[:shown], eigenvalues[:shown]), _eigenvalue_figure(eigenvalues))
    left_out = f" The first {shown} of {len(filters)}." if shown < len(filters) else ""
    note = f"Eigenvectors of the training images' patches, by falling eigenvalue, which stands below each.{left_out}"
    return Section("Whitening filters", note=note, figures=figures)


def norm_scales(record: RunRecord) -> Section | None:
    """How the scales of all batch norms spread over training."""
    lines = []
    for name in _SCALES:
        points = record.series("norms", name)
        lines.append(Line(name, [point.epoch for point in points], [point.value for point in points], is_marked=True))
    if not lines[0].y:
        return None
    last = {line.name: line.y[-1] for line in lines}
    described = ", ".join(f"{name} {format_number(value)}" for name, value in last.items())
    figure = line_chart(
        lines, title="Scales of batch norms", description=f"At the end: {described}.", x_label="epoch", from_zero=True
    )
    return Section("Batch norms", note="Over the scales of all channels of all batch norms.", figures=(figure,))


def ladder(record: RunRecord) -> Section | None:
    """The ladder of tricks that the recipe is a rung of, as it was published."""
    found = record.events("ladder")
    if not found:
        return None
    rung, names, seconds = found[-1]["rung"], found[-1]["names"], found[-1]["published_seconds"]
    bars = [
        (f"{name} (this run)" if number == rung else name, math.nan if value is None else float(value))
        for number, (name, value) in enumerate(zip(names, seconds, strict=True))
    ]
    note = (
        "Each rung has the tricks of those above it; about 94 % on CIFAR-10 throughout, on another machine than this."
    )
    figure = named_bars(bars, title="Published", unit="seconds on one V100", description="training time by rung")
    return Section("The ladder", note=note, figures=(figure,))


def _eigenvalue_figure(eigenvalues: Sequence[float]) -> Figure:
    numbers = [float(number) for number in range(1, len(eigenvalues) + 1)]
    return line_chart(
        [Line("eigenvalue", numbers, list(eigenvalues), is_marked=True)],
        title="Eigenvalues", x_label="component", log_y=True,
        description=f"{len(eigenvalues)} from {format_number(eigenvalues[0])} to {format_number(eigenvalues[-1])}.",
    )  # fmt: skip


def _filters_figure(filters: Sequence[Any], eigenvalues: Sequence[float]) -> Figure:
    """Filters (channels, rows, columns) as squares of colours; each is stretched to its own largest entry."""
    pictures = "".join(
        f'<li>{_picture(one)}<span class="unit">{format_number(value)}</span></li>'
        for one, value in zip(filters, eigenvalues, strict=True)
    )
    style = "display:flex;flex-wrap:wrap;gap:0.6em;list-style:none;padding:0;margin:0.8em 0 0"
    return Figure(
        f'<figure class="whole"><figcaption><h3>{escape("Filters")}</h3></figcaption><ul style="{style}">{pictures}'
        "</ul></figure>"
    )


def _picture(one: Sequence[Sequence[Sequence[float]]]) -> str:
    largest = max(abs(value) for channel in one for row in channel for value in row) or 1.0
    rows, columns = len(one[0]), len(one[0][0])
    cells = []
    for y in range(rows):
        for x in range(columns):
            # gray for one channel; of more than three the first three are shown
            values = [one[channel][y][x] for channel in range(min(3, len(one)))]
            values = values * 3 if len(values) == 1 else [*values, *[0.0] * (3 - len(values))]
            colour = ",".join(str(round(127.5 * (1 + value / largest))) for value in values)
            cells.append(f'<rect x="{x}" y="{y}" width="1.02" height="1.02" fill="rgb({colour})"/>')
    style = "width:3em;height:3em;display:block;outline:1px solid #8888"
    return (
        f'<svg viewBox="0 0 {columns} {rows}" style="{style}" role="img" '
        f'aria-label="filter of {rows} by {columns} pixels">{"".join(cells)}</svg>'
    )
