"""The network before and after: channels of each layer, what is left of them, and at how many bits."""

from collections.abc import Sequence
from html import escape
from typing import Any

from scrimp.report.figures import Figure
from scrimp.report.record import RunRecord


def network_change(record: RunRecord, title: str = "The network, before and after") -> Figure | None:
    """A bar per layer: as long as its channels before, filled as far as channels are left, as dark as it has bits.

    ``None`` for a run that did not compress.
    """
    found = record.events("compression")
    if not found or not found[-1].get("layers"):
        return None
    layers: Sequence[Sequence[Any]] = found[-1]["layers"]
    widest = max(int(before) for _, before, *_ in layers) or 1
    rows = "".join(
        _row(str(name), int(was), int(left), int(weights), float(bits), widest)
        for name, was, left, _, weights, bits in layers
    )
    return Figure(
        f'<figure class="whole"><figcaption><h3>{escape(title)}</h3><span class="unit">channels; outlined: before, '
        "filled: left, darker: more bits per weight</span></figcaption>"
        f'<table class="parts layers"><tbody>{rows}</tbody></table></figure>'
    )


def _row(name: str, before: int, left: int, num_weights: int, bits: float, widest: int) -> str:
    per_weight = bits / num_weights if num_weights else 0.0
    # from faint at no bits to full at eight and more
    strength = 0.25 + 0.75 * min(1.0, per_weight / 8)
    outer, inner = 1000 * before / widest, 1000 * left / widest
    bar = (
        '<svg class="layer" viewBox="0 0 1000 10" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="was" x="0" y="0.5" width="{outer:.1f}" height="9"/>'
        f'<rect class="s1" x="0" y="0.5" width="{inner:.1f}" height="9" fill-opacity="{strength:.2f}"/></svg>'
    )
    channels = f"{left:,} of {before:,}" if left != before else f"{before:,}"
    return (
        f'<tr><th scope="row">{escape(name)}</th><td class="bar">{bar}</td><td>{channels}</td>'
        f"<td>{per_weight:.1f} bits</td></tr>"
    )
