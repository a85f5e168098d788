"""Charts as inline SVG, drawn here so that a page needs no plotting library and no network.

A chart is a ``<figure>`` whose SVG has the plot area as its own box: positions are percentages of that box and labels
hang over its edges, so a chart takes any width while its text keeps its size. Curves and bars lie in an inner SVG with
a ``viewBox`` of 1000 by 1000. Colours are classes; the page's style sheet gives them a light and a dark face. Without
script the legend shows the last values; with it, the values under the pointer.
"""

import bisect
import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from scrimp.report.axes import SMALLEST, Axis, is_drawable, linear_axis, log_axis, thin
from scrimp.report.units import format_number, format_percent, format_seconds

_MAX_BARS = 60
_MAX_MARKERS = 40


@dataclass(frozen=True)
class Figure:
    """Finished markup of one figure; a template takes it as it is, everything else it escapes."""

    html: str

    def __html__(self) -> str:
        """The markup, for template engines that ask whether a value is safe."""
        return self.html


@dataclass(frozen=True)
class Line:
    """One curve: its name, and one ``y`` for each ``x``; values that are not finite become gaps.

    ``is_marked`` puts a dot on each value, for curves of few measurements; ``x`` has to be ascending.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    is_marked: bool = False


def line_chart(
    lines: Sequence[Line],
    *,
    title: str,
    description: str,
    x_label: str,
    unit: str = "",
    log_y: bool = False,
    from_zero: bool = False,
    colours: Sequence[str] = ("s1", "s2", "s3", "s4"),
) -> Figure:
    """A chart of one or several curves over a common x axis that begins at 0.

    At most 400 points of each curve are drawn, spikes included. ``log_y`` is followed when all values are above 0.
    ``colours`` are classes of the style sheet, one for each line; beyond them they begin anew.
    """
    kept = [_thinned(line) for line in lines]
    values = [y for line in kept for y in line.y]
    if not values:
        return _empty(title)
    is_log = log_y and min(values) > SMALLEST
    if is_log:
        y_axis = log_axis(min(values), max(values))
    else:
        y_axis = linear_axis(min(0.0, *values) if from_zero else min(values), max(values))
    ends = [x for line in kept for x in line.x]
    x_axis = linear_axis(min(0.0, *ends), max(ends) or 1.0, snap=False)
    curves = [
        _curve(line, thinned, (x_axis, y_axis), colour)
        for line, thinned, colour in zip(lines, kept, itertools.cycle(colours), strict=False)
    ]
    num_bad = sum(not is_drawable(y) for line in lines for y in line.y)
    plural = "s that are" if num_bad != 1 else " that is"
    return _chart(
        title=title,
        unit=", ".join(part for part in (unit, "log scale" if is_log else "") if part),
        description=description,
        legend=[(line.name, line.y[-1] if line.y else math.nan) for line in kept],
        series=[list(zip(line.x, line.y, strict=True)) for line in kept],
        axes=(x_axis, y_axis),
        x_label=x_label,
        marks="".join(paths for paths, _ in curves),
        dots="".join(dots for _, dots in curves),
        colours=colours,
        remark=f"{num_bad} value{plural} not finite cannot be drawn." if num_bad else "",
    )


def bar_chart(
    values: Sequence[float],
    *,
    title: str,
    description: str,
    name: str,
    x_label: str,
    unit: str = "",
    is_series: bool = True,
) -> Figure:
    """One bar for each of ``values``, numbered from 1; more than 60 are averaged in groups of equal size.

    The last value of a series in time is told beside its title.
    """
    group = max(1, math.ceil(len(values) / _MAX_BARS))
    bars = []
    for start in range(0, len(values), group):
        members = [value for value in values[start : start + group] if is_drawable(value)]
        if members:
            width = min(group, len(values) - start)
            bars.append((start + 0.5, width, max(sum(members) / len(members), 0.0)))
    if not bars:
        return _empty(title)
    y_axis = linear_axis(0.0, max(height for _, _, height in bars) or 1.0)
    x_axis = _whole_ticks(linear_axis(0.5, len(values) + 0.5, snap=False))
    marks = "".join(_bar(x_axis, y_axis, left + width / 2, width, height) for left, width, height in bars)
    return _chart(
        title=title,
        unit=", ".join(part for part in (unit, f"mean of {group} each" if group > 1 else "") if part),
        description=description,
        legend=[(name, bars[-1][2])] if is_series else [],
        series=[[(math.floor(left + 0.5 + width / 2), height) for left, width, height in bars]],
        axes=(x_axis, y_axis),
        x_label=x_label,
        marks=marks,
        dots="",
    )


def stacked_bar(parts: Sequence[tuple[str, float]], *, title: str, description: str) -> Figure:
    """One horizontal bar cut into ``parts`` (name, seconds), with a table of seconds and shares under it."""
    drawable = [(name, max(seconds, 0.0)) for name, seconds in parts if is_drawable(seconds)]
    total = sum(seconds for _, seconds in drawable)
    if not total:
        return _empty(title)
    rects, rows, left = [], [], 0.0
    for number, (name, seconds) in enumerate(drawable):
        share, colour = seconds / total, f"p{number % 7 + 1}"
        rects.append(f'<rect class="{colour}" x="{1000 * left:.1f}" y="0" width="{1000 * share:.1f}" height="1"/>')
        rows.append(
            f'<tr><th scope="row"><i class="{colour}"></i>{escape(name)}</th>'
            f"<td>{format_seconds(seconds)}</td><td>{format_percent(share, digits=1)}</td></tr>"
        )
        left += share
    svg = (
        f'<svg class="stack" viewBox="0 0 1000 1" preserveAspectRatio="none" {_accessible(title, description)}'
        f"{''.join(rects)}</svg>"
    )
    table = f'<table class="parts"><tbody>{"".join(rows)}</tbody></table>'
    return Figure(f'<figure class="whole"><figcaption><h3>{escape(title)}</h3></figcaption>{svg}{table}</figure>')


def _thinned(line: Line) -> Line:
    pairs = [(x, y) for x, y in zip(line.x, line.y, strict=True) if is_drawable(x)]
    kept = thin([y for _, y in pairs])
    return Line(line.name, [pairs[index][0] for index in kept], [pairs[index][1] for index in kept])


def _segments(line: Line, thinned: Line) -> list[list[tuple[float, float]]]:
    """The thinned curve, cut wherever the full one has a value that cannot be drawn."""
    breaks = [x for x, y in zip(line.x, line.y, strict=True) if not is_drawable(y)]
    segments: list[list[tuple[float, float]]] = []
    num_passed = 0
    for x, y in zip(thinned.x, thinned.y, strict=True):
        now_passed = bisect.bisect_right(breaks, x)
        if not segments or now_passed > num_passed:
            segments.append([])
        segments[-1].append((x, y))
        num_passed = now_passed
    return segments


def _curve(line: Line, thinned: Line, axes: tuple[Axis, Axis], colour: str) -> tuple[str, str]:
    """A curve as paths, and the dots on it: one on each value of a marked curve, and one where a path has no length."""
    x_axis, y_axis = axes
    paths: list[str] = []
    dots: list[str] = []
    has_dots = line.is_marked and len(thinned.x) <= _MAX_MARKERS
    for segment in _segments(line, thinned):
        places = [(x_axis.position(x), 1 - y_axis.position(y)) for x, y in segment]
        if len(places) > 1:
            path = "L".join(f"{1000 * x:.1f} {1000 * y:.1f}" for x, y in places)
            paths.append(f'<path class="{colour}" d="M{path}"/>')
        if has_dots or len(places) == 1:
            dots.extend(f'<circle class="{colour}" cx="{100 * x:.2f}%" cy="{100 * y:.2f}%" r="3"/>' for x, y in places)
    return "".join(paths), "".join(dots)


def _bar(x_axis: Axis, y_axis: Axis, middle: float, width: float, height: float) -> str:
    """A bar with room to both sides; of few bars none is wider than an eighth of the chart."""
    centre, top = x_axis.position(middle), y_axis.position(height)
    thickness = min(0.7 * width / (x_axis.high - x_axis.low), 0.125)
    return (
        f'<rect class="s1" x="{1000 * (centre - thickness / 2):.1f}" y="{1000 - 1000 * top:.1f}" '
        f'width="{1000 * thickness:.1f}" height="{1000 * top:.1f}"/>'
    )


def _whole_ticks(axis: Axis) -> Axis:
    whole = [(tick, f"{tick:.0f}") for tick in axis.ticks if tick == int(tick)]
    return Axis(axis.low, axis.high, tuple(tick for tick, _ in whole), tuple(label for _, label in whole))


def _accessible(title: str, description: str) -> str:
    """The attributes of an SVG that make it an image with a name, and its first two children."""
    name = "".join(letter if letter.isalnum() else "-" for letter in title.lower())
    return (
        f'role="img" aria-labelledby="{name}-title" aria-describedby="{name}-description">'
        f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-description">{escape(description)}</desc>'
    )


def _empty(title: str) -> Figure:
    return Figure(
        f'<figure class="chart"><figcaption><h3>{escape(title)}</h3></figcaption>'
        '<p class="remark">Nothing was recorded.</p></figure>'
    )


def _chart(
    *,
    title: str,
    unit: str,
    description: str,
    legend: Sequence[tuple[str, float]],
    series: Sequence[Sequence[tuple[float, float]]],
    axes: tuple[Axis, Axis],
    x_label: str,
    marks: str,
    dots: str,
    remark: str = "",
    colours: Sequence[str] = ("s1",),
) -> Figure:
    x_axis, y_axis = axes
    points = [[[float(f"{x:.6g}"), float(f"{y:.5g}")] for x, y in one] for one in series]
    data = {"low": x_axis.low, "high": x_axis.high, "when": x_label, "series": points}
    # a single curve is named by the title: its legend is just its value
    names = [
        f'<i class="{colour}"></i>{escape(name)} ' if len(legend) > 1 else ""
        for (name, _), colour in zip(legend, itertools.cycle(colours), strict=False)
    ]
    entries = "".join(
        f"<li>{name}<b>{format_number(value)}</b></li>" for name, (_, value) in zip(names, legend, strict=True)
    )
    gutter = max(3, *(len(label) for label in y_axis.labels))
    foot = f'<p class="remark">{escape(remark)}</p>' if remark else ""
    return Figure(
        f'<figure class="chart" data-chart="{escape(json.dumps(data, separators=(",", ":")))}">'
        f'<figcaption><h3>{escape(title)}</h3><span class="unit">{escape(unit)}</span>'
        f'<ul class="legend">{entries}</ul></figcaption>'
        f'<div class="plot" style="--gutter:{gutter}ch"><svg {_accessible(title, description)}'
        f"{grid(x_axis, y_axis)}"
        '<svg class="marks" viewBox="0 0 1000 1000" preserveAspectRatio="none" width="100%" height="100%">'
        f"{marks}</svg>"
        f'{dots}<line class="cursor" x1="0" x2="0" y1="0" y2="100%"/>'
        f'<text class="axis" x="50%" y="100%" dy="2.9em">{escape(x_label)}</text>'
        f"</svg></div>{foot}</figure>"
    )


def grid(x_axis: Axis, y_axis: Axis) -> str:
    """Lines and labels of both axes, as SVG."""
    parts = []
    for tick, label in zip(y_axis.ticks, y_axis.labels, strict=True):
        height = f"{100 - 100 * y_axis.position(tick):.2f}%"
        parts.append(f'<line class="rule" x1="0" x2="100%" y1="{height}" y2="{height}"/>')
        parts.append(f'<text class="y" x="-8" y="{height}" dy="0.32em">{label}</text>')
    parts.append('<line class="base" x1="0" x2="100%" y1="100%" y2="100%"/>')
    for tick, label in zip(x_axis.ticks, x_axis.labels, strict=True):
        place = f"{100 * x_axis.position(tick):.2f}%"
        parts.append(f'<text class="x" x="{place}" y="100%" dy="1.5em">{label}</text>')
    return "".join(parts)
