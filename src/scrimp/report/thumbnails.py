"""Pictures of the samples that pruning visited most and least, and how the visits spread."""

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from scrimp.report.figures import Figure, bar_chart
from scrimp.report.record import RunRecord

_BASE64 = re.compile(r"[A-Za-z0-9+/]+=*")


def visit_figures(record: RunRecord) -> tuple[Figure, ...]:
    """How many samples had how many visits and, of images, those visited least and most; empty without pruning."""
    found = record.events("visited")
    if not found:
        return ()
    told = found[-1]
    figures = []
    for name, title in (("least", "Visited least"), ("most", "Visited most")):
        pictures = [one for one in told.get(name, ()) if _BASE64.fullmatch(str(one["png"]))]
        if pictures:
            figures.append(_gallery(title, pictures))
    histogram = [float(count) for count in told.get("histogram", ())]
    if histogram:
        counted = f"{told['num_counted']:,} of {told['num_samples']:,} samples"
        figures.append(
            bar_chart(
                histogram[1:] or [0.0], title="Samples by number of visits", name="samples", x_label="visits",
                description=f"Of {counted}, by the number of epochs that visited them.", unit=counted,
                is_series=False,
            )
        )  # fmt: skip
    return tuple(figures)


def _gallery(title: str, pictures: Sequence[Mapping[str, Any]]) -> Figure:
    items = []
    for one in pictures:
        visits = f"{one['visits']:,}"
        label = f"class {one['class']}, sample {one['sample']}, {visits} visits"
        items.append(
            f'<li><img src="data:image/png;base64,{one["png"]}" alt="{escape(label)}" title="{escape(label)}">'
            f'<span class="unit">{visits}</span></li>'
        )
    return Figure(
        f'<figure class="whole gallery"><figcaption><h3>{escape(title)}</h3><span class="unit">visits below</span>'
        f"</figcaption><ul>{''.join(items)}</ul></figure>"
    )
