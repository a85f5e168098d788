"""A drawing of a network before and after its channels were removed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from scrimp.report.figures import Figure
from scrimp.report.record import RunRecord
from scrimp.report.units import format_number

_ROW, _TOP = 26, 20
_LONGEST_NAME, _LETTER = 30, 7.5  # letters; units of the drawing for one of them
_BEHIND_NAME, _REACH = 14, 44  # to the line that joins layers; of its widest arc
_BAR, _BEHIND_BAR = 220, 160  # of the widest layer; for its counts and bits
_HALF_A_ROW = 560  # two such drawings stand beside each other


@dataclass(frozen=True)
class _Columns:
    """Where the columns of the drawing are, as wide as its names and arcs need."""

    name_end: int
    bar_start: int

    @property
    def bar_end(self) -> int:
        return self.bar_start + _BAR

    @property
    def width(self) -> int:
        return self.bar_end + _BEHIND_BAR


@dataclass(frozen=True)
class LayerShape:
    """A layer's output channels at the start, now, and of the latter those at zero bits; bits per weight that is left.

    ``num_channels`` is 0 for a layer that was deleted with its branch.
    """

    name: str
    original_channels: int
    num_channels: int
    waiting_channels: int
    bits_per_weight: float


def architecture_of(record: RunRecord, title: str = "Architecture") -> Figure | None:
    """The network of a run as compression left it; None for a run that did not compress, or did not finish."""
    found = record.events("compression")
    if not found or not found[-1].get("layers"):
        return None
    told = found[-1]
    waiting: Mapping[str, int] = told.get("waiting", {})
    layers = [
        LayerShape(str(name), was, left, waiting.get(name, 0), bits / weights if weights else 0.0)
        for name, was, left, _, weights, bits in told["layers"]
    ]
    return architecture_figure(layers, [(str(a), str(b)) for a, b in told.get("edges", ())], title)


def architecture_figure(
    layers: Sequence[LayerShape], edges: Sequence[tuple[str, str]] = (), title: str = "Architecture"
) -> Figure:
    """One row for each layer, in order: what is left of its channels beside what it had, and its mean bits.

    ``edges`` are pairs (from, to) of names. Those that pass over layers, which branches and shortcuts do, are drawn as
    arcs; the others join neighbours. What waits at zero bits is drawn in another colour.
    """
    rows = {layer.name: number for number, layer in enumerate(layers)}
    most = max((layer.original_channels for layer in layers), default=1)
    height = _TOP + _ROW * len(layers) + 8
    ends = [(rows[a], rows[b]) for a, b in edges if a in rows and b in rows and rows[b] > rows[a]]
    columns = _columns(layers, has_arcs=any(b > a + 1 for a, b in ends))
    parts = [_header(columns), *(_edge(a, b, columns) for a, b in ends)]
    parts += [_row(number, layer, most, columns) for number, layer in enumerate(layers)]
    before = sum(layer.original_channels for layer in layers)
    after = sum(layer.num_channels for layer in layers)
    waiting = sum(layer.waiting_channels for layer in layers)
    told = f"{after:,} of {before:,} channels are left in {len(layers)} layers"
    told += f", {waiting:,} of them at zero bits." if waiting else "."
    names = [("s1", "left"), ("s2", "waiting at zero bits")] if waiting else []
    legend = "".join(f'<li><i class="{colour}"></i>{name}</li>' for colour, name in names)
    whole_row = ' style="grid-column:1/-1"' if columns.width > _HALF_A_ROW else ""
    return Figure(
        f'<figure class="whole"{whole_row}><figcaption><h3>'
        f'{escape(title)}</h3><span class="unit">{escape(told)}</span><ul class="legend">{legend}</ul></figcaption>'
        f'<div style="overflow-x:auto;margin-top:10px"><svg viewBox="0 0 {columns.width} {height}" role="img" '
        f'aria-label="{escape(told)}" style="width:100%;min-width:{0.6 * columns.width:.0f}px;'
        f'max-width:{1.3 * columns.width:.0f}px;display:block" '
        f'font-size="13" fill="currentColor">{"".join(parts)}</svg></div></figure>'
    )


def _columns(layers: Sequence[LayerShape], *, has_arcs: bool) -> _Columns:
    longest = max((min(len(layer.name), _LONGEST_NAME) for layer in layers), default=0)
    name_end = round(_LETTER * longest) + 4
    return _Columns(name_end, name_end + _BEHIND_NAME + (_REACH if has_arcs else 0) + 12)


def _header(columns: _Columns) -> str:
    soft = 'fill="var(--soft)" font-size="12"'
    return (
        f'<text x="{columns.bar_start}" y="12" {soft}>channels: left, of before</text>'
        f'<text x="{columns.width - 4}" y="12" text-anchor="end" {soft}>bits per weight</text>'
    )


def _edge(start: int, end: int, columns: _Columns) -> str:
    """A line to the next row, or an arc to a later one; arcs are the wider the more rows they pass."""
    x, top, bottom = columns.name_end + _BEHIND_NAME, _middle(start), _middle(end)
    if end == start + 1:
        path = f"M{x} {top}V{bottom}"
    else:
        reach = min(_REACH, 12 + 6 * (end - start - 1))
        path = f"M{x} {top}C{x + reach} {top + _ROW // 2} {x + reach} {bottom - _ROW // 2} {x} {bottom}"
    return f'<path d="{path}" fill="none" stroke="var(--soft)" stroke-width="1.5"/>'


def _row(number: int, layer: LayerShape, most: int, columns: _Columns) -> str:
    middle = _middle(number)
    scale, bar_start = _BAR / most, columns.bar_start
    y, thickness = middle - 7, 14
    had, has = scale * layer.original_channels, scale * layer.num_channels
    waits = scale * layer.waiting_channels
    name = layer.name if len(layer.name) <= _LONGEST_NAME else f"...{layer.name[3 - _LONGEST_NAME :]}"
    counts = f"{layer.num_channels:,} of {layer.original_channels:,}" if layer.num_channels else "branch removed"
    bits = f"{format_number(layer.bits_per_weight)}" if layer.num_channels else "-"
    bars = [
        f'<rect x="{bar_start}" y="{y}" width="{had:.1f}" height="{thickness}" fill="var(--grid)" rx="2"/>',
        f'<rect class="s1" x="{bar_start}" y="{y}" width="{max(0.0, has - waits):.1f}" height="{thickness}" rx="2"/>',
    ]
    if layer.waiting_channels:
        left = bar_start + has - waits
        bars.append(f'<rect class="s2" x="{left:.1f}" y="{y}" width="{max(1.5, waits):.1f}" height="{thickness}"/>')
    return (
        f'<text x="{columns.name_end}" y="{middle + 4}" text-anchor="end"><title>{escape(layer.name)}</title>'
        f'{escape(name)}</text><circle cx="{columns.name_end + _BEHIND_NAME}" cy="{middle}" r="3.5" '
        f'fill="var(--soft)"/>{"".join(bars)}'
        f'<text x="{bar_start + had + 8:.1f}" y="{middle + 4}" font-size="12">{counts}</text>'
        f'<text x="{columns.width - 4}" y="{middle + 4}" text-anchor="end">{bits}</text>'
    )


def _middle(number: int) -> int:
    return _TOP + _ROW * number + _ROW // 2
