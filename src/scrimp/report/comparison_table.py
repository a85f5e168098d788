"""The table of a comparison as text: its cells, and the table in Markdown."""

from dataclasses import dataclass

from scrimp.report.comparison import (
    ACCURACY,
    LOSS,
    Cell,
    Comparison,
    Measure,
    Variant,
    cell,
    measures_of,
    verdict,
)

_LEAST_SPREAD = 0.005  # of the mean; less is not worth its place


@dataclass(frozen=True)
class CellText:
    """What a cell says: the mean, how it spreads over the seeds, and its ratio to plain training; any may be empty."""

    value: str
    spread: str = ""
    ratio: str = ""


@dataclass(frozen=True)
class ComparisonTable:
    """Names of the columns behind the variant's, and each variant's name with its cells."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, tuple[CellText, ...]], ...]


def comparison_table(comparison: Comparison) -> ComparisonTable:
    """The table of what has finished."""
    measures = measures_of(comparison)
    rows = tuple(
        (variant.name, tuple(_text(comparison, variant, measure) for measure in measures))
        for variant in comparison.finished()
    )
    return ComparisonTable(tuple(measure.label for measure in measures), rows)


def verdicts(comparison: Comparison) -> tuple[str, ...]:
    """One sentence per variant on its result beside plain training."""
    return tuple(sentence for variant in comparison.finished() if (sentence := verdict(comparison, variant)))


def legend(comparison: Comparison) -> tuple[tuple[str, str], ...]:
    """What each variant is."""
    return tuple((variant.name, variant.meaning) for variant in comparison.finished())


def footnote(comparison: Comparison) -> str:
    """What the numbers are."""
    at_once = ""
    if comparison.num_at_once > 1:
        at_once = f" Times are of {comparison.num_at_once} runs at a time; processor time minds that less."
    return (
        f"Means of {len(comparison.seeds)} seed{'s' * (len(comparison.seeds) != 1)}; ± is the standard deviation. "
        "Ratios are to plain training, seed by seed. Model: the packed file, or its weights in float32. Checkpoints: "
        "every byte on the disk at the end; plain training stores them without loss, and the two ratios are to the "
        f"bytes of their tensors: of a difference alone, and of the whole store.{at_once}"
    )


def comparison_markdown(comparison: Comparison) -> str:
    """The table, what the variants are, and what the seeds say, in Markdown."""
    table = comparison_table(comparison)
    lines = [f"# {comparison.recipe}: plain training and its savings", "", f"`{comparison.command}`", ""]
    lines += [_line(["", *table.header]), _line(["---", *["---:"] * len(table.header)])]
    lines += [_line([f"**{name}**", *map(_markdown_cell, cells)]) for name, cells in table.rows]
    lines += ["", footnote(comparison), ""]
    lines += [f"- {sentence}" for sentence in verdicts(comparison)]
    lines += ["", *(f"- **{name}**: {meaning}" for name, meaning in legend(comparison))]
    return "\n".join(lines) + "\n"


def ratio_text(ratio: float) -> str:
    """A ratio as people read it: ``0.65x``, or ``1/23`` where it is small."""
    return f"{ratio:.2f}x" if ratio > 0.2 or ratio <= 0 else f"1/{1 / ratio:.3g}"


def _text(comparison: Comparison, variant: Variant, measure: Measure) -> CellText:
    found = cell(comparison, variant, measure)
    if found is None:
        return CellText("-")
    is_plain = comparison.plain is not None and variant.name == comparison.plain.name
    ratio = "" if found.ratio is None or is_plain else ratio_text(found.ratio)
    return CellText(measure.show(found.mean), _spread(measure, found), ratio)


def _spread(measure: Measure, found: Cell) -> str:
    if found.std is None:
        return ""
    if measure is ACCURACY:
        return f"±{100 * found.std:.2f}"
    if measure is LOSS:
        return f"±{found.std:.4f}"
    share = found.std / found.mean if found.mean else 0.0
    return f"±{100 * share:.0f} %" if share >= _LEAST_SPREAD else ""


def _markdown_cell(text: CellText) -> str:
    value = " ".join(filter(None, [text.value, text.spread]))
    return f"{value} (**{text.ratio}**)" if text.ratio else value


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
