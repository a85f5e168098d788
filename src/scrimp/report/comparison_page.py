"""The page of a comparison: what was saved at a glance, the table, trade-offs, curves, and what changed inside."""

import itertools
import math
from collections.abc import Callable, Sequence
from html import escape
from statistics import mean

from scrimp.report.architecture import architecture_of
from scrimp.report.comparison import (
    ACCURACY,
    CHECKPOINTS,
    CPU_SECONDS,
    LOSS,
    MODEL,
    SECONDS,
    VISITS,
    Comparison,
    Measure,
    Variant,
    cell,
    difference,
    result_measure,
    verdict,
)
from scrimp.report.comparison_table import CellText, comparison_table, footnote, legend, ratio_text
from scrimp.report.facts import Fact
from scrimp.report.figures import Figure, Line, line_chart
from scrimp.report.page import PAGE_NAME, fill_page
from scrimp.report.record import Point, RunRecord
from scrimp.report.scatter import Points, scatter_chart
from scrimp.report.section import Section
from scrimp.report.sweep import sweep_section
from scrimp.report.thumbnails import visit_figures
from scrimp.report.units import byte_unit, format_bytes, format_count, format_seconds

_ALL = "all"
_MAX_CURVES = 8
# plain training is gray and all savings together stand out, in every chart
_COLOURS = {
    "plain": "p7", "shortened": "p4", "samples": "p1", "steps": "p3", "bits": "p6", "checkpoints": "p2", _ALL: "s2",
}  # fmt: skip
_OTHER_COLOURS = ("p5", "s1", "s3", "p4", "s4", "p2")
_AS_GOOD = {LOSS: 0.01, ACCURACY: 0.005}  # nats; half a point


def render_comparison(comparison: Comparison) -> str:
    """The page as text, from the records of the runs alone. Raises: MissingDependencyError - jinja2 is missing."""
    summary = comparison.any_summary()
    seeds = f"{len(comparison.seeds)} seed{'s' * (len(comparison.seeds) != 1)}"
    where = [] if summary is None else [summary.data, summary.model, summary.device, summary.precision]
    found = [make(comparison) for make in _SECTIONS]
    return fill_page(
        kind="comparison",
        title=f"{comparison.recipe}: what was saved",
        subtitle=[*where, seeds],
        status="finished" if comparison.is_complete else "unfinished",
        last_word="",
        facts=_at_a_glance(comparison),
        sections=[section for section in found if section is not None],
    )


def _at_a_glance(comparison: Comparison) -> tuple[Fact, ...]:
    """All savings together, or else the smallest model that is as good as plain training, beside that."""
    variants = [variant for variant in comparison.finished() if variant is not comparison.plain]
    if not variants or comparison.plain is None:
        return ()
    shown = next((variant for variant in variants if variant.name == _ALL), None) or _smallest_good(
        comparison, variants
    )
    facts = [_result_fact(comparison, shown)]
    time = (SECONDS, "training time", format_seconds)
    if comparison.num_at_once > 1:
        time = (CPU_SECONDS, "processor time", format_seconds)
    for measure, label, show in (
        (VISITS, "samples visited", format_count), time,
        (MODEL, "model", format_bytes), (CHECKPOINTS, "checkpoints", format_bytes),
    ):  # fmt: skip
        ours, theirs = (cell(comparison, variant, measure) for variant in (shown, comparison.plain))
        if ours is not None and theirs is not None and ours.ratio is not None:
            note = f"{show(ours.mean)} in place of {show(theirs.mean)}"
            facts.append(Fact(label, ratio_text(ours.ratio), note))
    store = _checkpoint_ratios(shown)
    return (*facts, *([store] if store is not None else []))


def _smallest_good(comparison: Comparison, variants: Sequence[Variant]) -> Variant:
    """The smallest model as good as plain training, or as the best if none is; the last of those alike.

    As good is half a point less at most, or 0.01 nats more.
    """
    measure = result_measure(comparison)
    sign = 1.0 if measure is LOSS else -1.0

    def of(variant: Variant, what: Measure) -> float | None:
        found = cell(comparison, variant, what)
        return None if found is None else found.mean

    losses = {one.name: sign * found for one in variants if (found := of(one, measure)) is not None}
    if comparison.plain is None or not losses:
        return variants[-1]
    plain = of(comparison.plain, measure)
    best = min(losses.values())
    aim = best if plain is None or best > sign * plain + _AS_GOOD[measure] else sign * plain
    good = [one for one in variants if losses.get(one.name, math.inf) <= aim + _AS_GOOD[measure]]
    return min(reversed(good or variants), key=lambda one: of(one, MODEL) or math.inf)


def _result_fact(comparison: Comparison, shown: Variant) -> Fact:
    measure = result_measure(comparison)
    ours, found = cell(comparison, shown, measure), difference(comparison, shown)
    if ours is None:
        return Fact(f"test {measure.label.removeprefix('test ')}", "unknown", f"with {shown.name}")
    note = f"with {'all savings' if shown.name == _ALL else shown.name}"
    if found is not None:
        factor, unit = (1.0, "nats") if measure is LOSS else (100.0, "points")
        width = "" if found.half_width is None else f" ±{factor * found.half_width:.2g}"
        note += f"; {round(factor * found.mean, 2) + 0.0:+.2f}{width} {unit} beside plain training"
    return Fact(f"test {measure.label.removeprefix('test ')}", measure.show(ours.mean), note)


def _checkpoint_ratios(shown: Variant) -> Fact | None:
    summaries = list(shown.summaries().values())
    ratios = [one.checkpoint_delta_ratio for one in summaries if one.checkpoint_delta_ratio]
    if not ratios:
        return None
    whole = mean(one.checkpoint_raw_bytes / max(1, one.checkpoint_stored_bytes) for one in summaries)
    saves, per_weight = summaries[0].num_checkpoints or 0, summaries[0].checkpoint_bytes_per_weight
    weight = f", of {per_weight:.1f} bytes per weight" if per_weight is not None else ""
    note = f"a difference to its tensors{weight}; the whole store of {saves} saves {ratio_text(1 / whole)}"
    return Fact("each checkpoint", ratio_text(1 / mean(ratios)), note)


def _table_section(comparison: Comparison) -> Section | None:
    table = comparison_table(comparison)
    if not table.rows:
        return None
    colours = _colours(comparison)
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in ("", *table.header))
    rows = "".join(
        f'<tr class="{"all" if name == _ALL else ""}"><th scope="row"><i class="{colours[name]}"></i>'
        f"{escape(name)}</th>{''.join(map(_html_cell, table.header, cells))}</tr>"
        for name, cells in table.rows
    )
    html = f'<div class="compared"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    return Section("Each saving alone, and all together", note=footnote(comparison), figures=(Figure(html),))


def _html_cell(label: str, text: CellText) -> str:
    size = float(text.ratio[:-1]) if text.ratio.endswith("x") else 0.0
    kind = "same" if size == 1 else "more" if size > 1 else "less"
    ratio = f'<b class="{kind}">{escape(text.ratio)}</b>' if text.ratio else ""
    below = " ".join(filter(None, [escape(text.spread), ratio]))
    small = f"<small>{below}</small>" if below else ""
    return f'<td data-label="{escape(label)}">{escape(text.value)}{small}</td>'


def _words(comparison: Comparison) -> Section | None:
    told = ((variant.name, verdict(comparison, variant)) for variant in comparison.finished())
    # the name stands beside the sentence
    pairs = tuple((name, sentence.removeprefix(f"{name} ").removeprefix("is ")) for name, sentence in told if sentence)
    return Section("What the seeds say", pairs=pairs) if pairs else None


def _meanings(comparison: Comparison) -> Section | None:
    pairs = legend(comparison)
    return Section("What each variant is", pairs=pairs, command=comparison.command) if pairs else None


def _trade_offs(comparison: Comparison) -> Section | None:
    measure = result_measure(comparison)
    factor, unit = (1.0, "nats") if measure is LOSS else (100.0, "%")
    figures = []
    for cost, label in ((VISITS, "samples visited"), (SECONDS, "seconds"), (MODEL, ""), (CHECKPOINTS, "")):
        places = {one.name: _places(one, cost, measure, factor) for one in comparison.finished()}
        costs = {x for of_variant in places.values() for x, _ in of_variant}
        if len(costs) < 2:
            continue
        scale, byte_label = (1.0, label) if label else byte_unit(max(costs))
        groups = [
            Points(name, _colours(comparison)[name], [(x / scale, y) for x, y in of_variant])
            for name, of_variant in places.items()
        ]
        figures.append(
            scatter_chart(
                groups, title=f"{measure.label.capitalize()} against {cost.label}", x_label=byte_label, unit=unit,
                description=f"{measure.label} against {cost.label} of {len(groups)} variants.",
                link=cost is MODEL and any("-gamma-" in name for name in places),
            )
        )  # fmt: skip
    corner = "lower" if measure is LOSS else "upper"
    note = f"Large: the mean over seeds; small: single runs. To the {corner} left is better."
    return Section("Trade-offs", note=note, figures=tuple(figures)) if figures else None


def _places(variant: Variant, cost: Measure, result: Measure, factor: float) -> list[tuple[float, float]]:
    pairs = ((cost.of(summary), result.of(summary)) for summary in variant.summaries().values())
    return [(x, factor * y) for x, y in pairs if x is not None and y is not None]


def _curves(comparison: Comparison) -> Section | None:
    variants = comparison.finished()[:_MAX_CURVES]
    is_loss = result_measure(comparison) is LOSS
    key, factor = ("test_loss_nats", 1.0) if is_loss else ("test_accuracy", 100.0)
    unit = "nats" if is_loss else "%"
    charts = (
        ("Test " + ("loss" if is_loss else "accuracy"), unit, lambda r: r.series("evaluation", key), factor, False),
        ("Training loss", "nats", lambda r: r.series("step", "train_loss"), 1.0, True),
    )
    figures = [
        chart
        for title, its_unit, read, scale, is_log in charts
        if (chart := _over_epochs(comparison, variants, read, title=title, unit=its_unit, factor=scale, log_y=is_log))
        is not None
    ]
    seconds = [
        Line(variant.name, [point.seconds for point in points], [factor * point.value for point in points], True)
        for variant in variants
        for points in [_mean_series(variant, lambda r: r.series("evaluation", key))]
    ]
    if any(line.y for line in seconds):
        title = f"Test {'loss' if is_loss else 'accuracy'} over time"
        figures.insert(1, _chart(comparison, seconds, title=title, unit=unit, x_label="seconds of training"))
    return Section("Curves", note="Means over the seeds.", figures=tuple(figures)) if figures else None


def _sweep(comparison: Comparison) -> Section | None:
    swept = [one for one in comparison.finished() if "-gamma-" in one.name]
    of_plain = [] if comparison.plain is None else [comparison.plain]
    records = [record for variant in (*of_plain, *swept) for record in variant.records.values()]
    return sweep_section(records) if swept else None


def _network(comparison: Comparison) -> Section | None:
    figures = []
    for variant in comparison.finished():
        if variant.name in (_ALL, "bits"):
            seed = min(variant.summaries())
            figure = architecture_of(variant.records[seed], f"{variant.name}, seed {seed}")
            figures += [] if figure is None else [figure]
    return Section("The network, before and after", figures=tuple(figures)) if figures else None


def _checkpoints(comparison: Comparison) -> Section | None:
    variants = comparison.finished()[:_MAX_CURVES]
    points = {v.name: _mean_series(v, lambda r: r.series("checkpoint", "history_bytes")) for v in variants}
    largest = max((point.value for of_variant in points.values() for point in of_variant), default=0.0)
    if not largest:
        return None
    factor, unit = byte_unit(largest)
    lines = [
        Line(name, [p.epoch for p in found], [p.value / factor for p in found], len(found) <= 40)
        for name, found in points.items()
    ]
    total = [
        Line(line.name, line.x, [sum(line.y[: number + 1]) for number in range(len(line.y))], False) for line in lines
    ]
    figures = (
        _chart(comparison, lines, title="Each checkpoint in the history", unit=unit, log_y=True),
        _chart(comparison, total, title="All of them so far", unit=unit, from_zero=True),
    )
    note = "The newest checkpoint is kept bit by bit as well, until the next one comes; those bytes are not in here."
    return Section("Checkpoints over time", note=note, figures=figures)


def _samples(comparison: Comparison) -> Section | None:
    for variant in comparison.finished():
        if variant.name in ("samples", _ALL):
            seed = min(variant.summaries())
            figures = visit_figures(variant.records[seed])
            if figures:
                note = f"Of {variant.name}, seed {seed}: what pruning keeps coming back to, and what it leaves out."
                return Section("Samples that were pruned", note=note, figures=figures)
    return None


def _runs(comparison: Comparison) -> Section | None:
    links = tuple(
        (f"{variant.name}, seed {seed}", f"{record.run_dir.name}/{PAGE_NAME}")
        for variant in comparison.variants
        for seed, record in variant.records.items()
        if (record.run_dir / PAGE_NAME).exists()
    )
    return Section("The pages of the runs", links=links) if links else None


_SECTIONS: tuple[Callable[[Comparison], Section | None], ...] = (
    _table_section, _words, _trade_offs, _sweep, _curves, _network, _checkpoints, _samples, _meanings, _runs,
)  # fmt: skip


def _colours(comparison: Comparison) -> dict[str, str]:
    """The colour of each variant, alike in all charts."""
    others = itertools.cycle(_OTHER_COLOURS)
    return {variant.name: _COLOURS.get(variant.name) or next(others) for variant in comparison.variants}


def _over_epochs(
    comparison: Comparison,
    variants: Sequence[Variant],
    read: Callable[[RunRecord], Sequence[Point]],
    *,
    title: str,
    unit: str,
    factor: float,
    log_y: bool,
) -> Figure | None:
    lines = []
    for variant in variants:
        points = _mean_series(variant, read)
        marked = len(points) <= 40
        lines.append(Line(variant.name, [p.epoch for p in points], [factor * p.value for p in points], marked))
    return _chart(comparison, lines, title=title, unit=unit, log_y=log_y) if any(line.y for line in lines) else None


def _chart(
    comparison: Comparison,
    lines: Sequence[Line],
    *,
    title: str,
    unit: str,
    log_y: bool = False,
    from_zero: bool = False,
    x_label: str = "epoch",
) -> Figure:
    colours = _colours(comparison)
    described = f"{title} of {', '.join(line.name for line in lines if line.y)}."
    return line_chart(
        lines, title=title, description=described, x_label=x_label, unit=unit, log_y=log_y, from_zero=from_zero,
        colours=[colours[line.name] for line in lines],
    )  # fmt: skip


def _mean_series(variant: Variant, read: Callable[[RunRecord], Sequence[Point]]) -> list[Point]:
    """The mean over the seeds, point by point, as far as all of them go."""
    series = [read(variant.records[seed]) for seed in variant.summaries()]
    return [
        points[0]._replace(value=mean(point.value for point in points), seconds=mean(point.seconds for point in points))
        for points in zip(*series, strict=False)
    ]
