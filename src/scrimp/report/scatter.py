"""A chart of points: what something costs against what it reaches, one colour for each way to get there."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from statistics import fmean

from scrimp.report.axes import SMALLEST, Axis, is_drawable, linear_axis, log_axis
from scrimp.report.figures import Figure, grid
from scrimp.report.units import format_number

_WIDE = 8.0  # largest over smallest, from which an axis is logarithmic


@dataclass(frozen=True)
class Points:
    """One group: its name, its colour (a class of the style sheet), and the points (x, y) of its single runs."""

    name: str
    colour: str
    places: Sequence[tuple[float, float]]


def scatter_chart(
    groups: Sequence[Points], *, title: str, description: str, x_label: str, unit: str = "", link: bool = False
) -> Figure:
    """Points over a linear x axis, or a logarithmic one where they span much; the mean of a group is drawn larger.

    ``link`` joins the means of the groups in order of x, for sweeps. Every mean tells its group and values when it is
    pointed at. Groups without a drawable point are left out.
    """
    drawn = [(group, places) for group in groups if (places := _drawable(group))]
    every = [place for _, places in drawn for place in places]
    if not every:
        return Figure(f'<figure class="chart"><figcaption><h3>{escape(title)}</h3></figcaption></figure>')
    x_axis, y_axis = _x_axis([x for x, _ in every]), linear_axis(*_ends([y for _, y in every]))
    means: list[tuple[tuple[float, float], float, float]] = []
    marks: list[str] = []
    for group, places in drawn:
        mean = (fmean(x for x, _ in places), fmean(y for _, y in places))
        means.append((mean, x_axis.position(mean[0]), y_axis.position(mean[1])))
        if len(places) > 1:
            marks.extend(_dot(x_axis, y_axis, place, group.colour, 3.5) for place in places)
        told = f"{group.name}: {x_label} {format_number(mean[0])}, {format_number(mean[1])} {unit}".strip()
        marks.append(_dot(x_axis, y_axis, mean, group.colour, 6, told))
    path = ""
    if link and len(means) > 1:
        corners = "L".join(f"{1000 * x:.1f} {1000 - 1000 * y:.1f}" for _, x, y in sorted(means))
        path = f'<path class="joined" d="M{corners}"/>'
    legend = "".join(f'<li><i class="{group.colour}"></i>{escape(group.name)}</li>' for group, _ in drawn)
    scale = f"{unit}, log scale below" if x_axis.is_log else unit
    gutter = max(3, *(len(label) for label in y_axis.labels))
    name = "".join(letter if letter.isalnum() else "-" for letter in title.lower())
    return Figure(
        f'<figure class="chart scatter"><figcaption><h3>{escape(title)}</h3><span class="unit">{escape(scale)}</span>'
        f'<ul class="legend">{legend}</ul></figcaption>'
        f'<div class="plot" style="--gutter:{gutter}ch"><svg role="img" aria-labelledby="{name}-t" '
        f'aria-describedby="{name}-d"><title id="{name}-t">{escape(title)}</title>'
        f'<desc id="{name}-d">{escape(description)}</desc>{grid(x_axis, y_axis)}'
        '<svg class="marks" viewBox="0 0 1000 1000" preserveAspectRatio="none" width="100%" height="100%">'
        f"{path}</svg>{''.join(marks)}"
        f'<text class="axis" x="50%" y="100%" dy="2.9em">{escape(x_label)}</text></svg></div></figure>'
    )


def _drawable(group: Points) -> list[tuple[float, float]]:
    return [(x, y) for x, y in group.places if is_drawable(x) and is_drawable(y)]


def _ends(values: Sequence[float]) -> tuple[float, float]:
    margin = 0.08 * (max(values) - min(values))
    return min(values) - margin, max(values) + margin


def _x_axis(values: Sequence[float]) -> Axis:
    low, high = min(values), max(values)
    if low > SMALLEST and high > _WIDE * low:
        return log_axis(0.9 * low, 1.1 * high)
    return linear_axis(min(0.0, low), high)


def _dot(x_axis: Axis, y_axis: Axis, place: tuple[float, float], colour: str, radius: float, told: str = "") -> str:
    x, y = 100 * x_axis.position(place[0]), 100 - 100 * y_axis.position(place[1])
    inner = f"<title>{escape(told)}</title>" if told else ""
    kind = "" if told else " single"
    return f'<circle class="{colour}{kind}" cx="{x:.2f}%" cy="{y:.2f}%" r="{radius}">{inner}</circle>'
