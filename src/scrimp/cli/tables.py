"""Tables for people: drawn by rich on a terminal, plain lines elsewhere."""

import shutil
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import replace

from scrimp.report.comparison import DIFFERENCE, ENERGY, SECONDS, SPEED, STEPS, STORE, VISITS, Comparison
from scrimp.report.comparison_table import CellText, ComparisonTable, comparison_table, footnote, legend, verdicts

# what a narrow terminal does without, the first to go first
_LESS_WANTED = (SPEED, ENERGY, STEPS, DIFFERENCE, SECONDS, STORE, VISITS)
_BETWEEN = 3  # spaces between columns


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
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None  # a log is searched line by line
    for line in (*verdicts(comparison), "", *(f"{name}: {meaning}" for name, meaning in legend(comparison)), ""):
        print(line if width is None else textwrap.fill(line, width, subsequent_indent="  "))
    print(textwrap.fill(footnote(comparison), 100 if width is None else width))


def fitting(table: ComparisonTable, width: int) -> tuple[ComparisonTable, tuple[str, ...]]:
    """``table`` without the columns for which a terminal of ``width`` letters has no room, and the names of those."""
    names, widths = max(len(name) for name, _ in table.rows), _widths(table)
    gone: list[str] = []
    for measure in _LESS_WANTED:
        left = [width for width, label in zip(widths, table.header, strict=True) if label not in gone]
        if names + sum(left) + _BETWEEN * len(left) + 2 <= width:
            break
        gone += [measure.label] if measure.label in table.header else []
    kept = [number for number, label in enumerate(table.header) if label not in gone]
    rows = tuple((name, tuple(cells[number] for number in kept)) for name, cells in table.rows)
    return replace(table, header=tuple(table.header[number] for number in kept), rows=rows), tuple(gone)


def _widths(table: ComparisonTable) -> list[int]:
    """What each column needs; a heading may break between its words."""
    return [
        max(*map(len, label.split()), *(len(line) for _, cells in table.rows for line in _lines(cells[number])))
        for number, label in enumerate(table.header)
    ]


def _lines(text: CellText) -> tuple[str, str]:
    """The two lines of a cell: the mean, and its spread or ratio."""
    return text.value, " ".join(filter(None, [text.spread, text.ratio]))


def _draw_comparison(table: ComparisonTable) -> None:
    from rich import box  # noqa: PLC0415 - optional package
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    console = Console()
    table, gone = fitting(table, console.width)
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    drawn.add_column("", no_wrap=True)
    for name, width in zip(table.header, _widths(table), strict=True):
        drawn.add_column(Text(name), justify="right", width=width)
    for name, cells in table.rows:
        shown = []
        for one in cells:
            below = Text.assemble(
                (one.spread, "dim"), " " if one.spread and one.ratio else "", (one.ratio, "bold green")
            )
            shown.append(Text(f"{one.value}\n") + below)
        drawn.add_row(Text(name, style="bold"), *shown)
    console.print(drawn)
    if gone:
        console.print(f"no room here for {', '.join(gone)}: see the page", style="dim", highlight=False)
