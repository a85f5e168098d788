"""Tables for people: drawn by rich on a terminal, plain lines elsewhere."""

import sys
import textwrap
from collections.abc import Sequence

from scrimp.report.comparison import Comparison
from scrimp.report.comparison_table import ComparisonTable, comparison_table, footnote, legend, verdicts


def show_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; the first column is aligned left, the others right. Every cell is taken as it is."""
    if sys.stdout.isatty():
        try:
            _draw(header, rows)
        except ImportError:
            pass
        else:
            return
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    for row in (header, *rows):
        cells = (f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))
        print("  ".join([f"{row[0]:<{widths[0]}}", *cells]).rstrip())


def _draw(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich import box  # noqa: PLC0415 - optional package
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, name in enumerate(header):
        table.add_column(Text(name), justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    Console().print(table)


def show_comparison(comparison: Comparison) -> None:
    """Print the table of a comparison, what its seeds say, and what its variants are."""
    table = comparison_table(comparison)
    if not table.rows:
        print("no run has finished")
        return
    if sys.stdout.isatty():
        _draw_comparison(table)
    else:
        texts = [[" ".join(filter(None, [c.value, c.spread, c.ratio])) for c in cells] for _, cells in table.rows]
        show_table(("", *table.header), [(name, *cells) for (name, _), cells in zip(table.rows, texts, strict=True)])
    print()
    for line in (*verdicts(comparison), "", *(f"{name}: {meaning}" for name, meaning in legend(comparison)), ""):
        print(line)
    print(textwrap.fill(footnote(comparison), 100))


def _draw_comparison(table: ComparisonTable) -> None:
    """Two lines a cell: the mean, and its spread or ratio."""
    from rich import box  # noqa: PLC0415 - optional package
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    drawn.add_column("")
    for name in table.header:
        drawn.add_column(Text(name), justify="right")
    for name, cells in table.rows:
        shown = []
        for one in cells:
            below = Text.assemble(
                (one.spread, "dim"), " " if one.spread and one.ratio else "", (one.ratio, "bold green")
            )
            shown.append(Text(f"{one.value}\n") + below)
        drawn.add_row(Text(name, style="bold"), *shown)
    Console().print(drawn)
