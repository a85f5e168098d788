"""The final table of a run for the terminal: a rich renderable, and the same in plain text."""

import textwrap
from typing import TYPE_CHECKING

from scrimp.errors import MissingDependencyError
from scrimp.report.facts import Fact, summary_facts
from scrimp.report.summary import Summary

if TYPE_CHECKING:
    from rich.panel import Panel


def summary_panel(summary: Summary) -> "Panel":
    """The summary as a rich panel; the caller prints it.

    Raises: MissingDependencyError - rich is not installed; ``summary_text`` needs nothing.
    """
    try:
        from rich import box  # noqa: PLC0415 - optional package
        from rich.panel import Panel  # noqa: PLC0415
        from rich.table import Table  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415
    except ImportError as error:
        raise MissingDependencyError(
            'the coloured table needs rich, which is not installed: pip install "scrimp[train]"'
        ) from error
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(style="bold", no_wrap=True, justify="right")
    table.add_column(style="dim")
    for fact in summary_facts(summary):
        # Text, not str: a bracket in a value is not markup
        table.add_row(Text(fact.label), Text(_value(fact)), Text(fact.note))
    return Panel(table, title=Text(_title(summary)), title_align="left", box=box.ROUNDED, expand=False, padding=(1, 1))


def summary_text(summary: Summary, *, width: int = 100) -> str:
    """The summary as plain lines of at most ``width`` characters where words allow it, ending without a line end."""
    rows = summary_facts(summary)
    label_width = max(len(fact.label) for fact in rows)
    value_width = max(len(_value(fact)) for fact in rows)
    lines = [_title(summary)]
    for fact in rows:
        start = f"  {fact.label:<{label_width}}  {_value(fact):>{value_width}}  "
        wrapped = textwrap.wrap(fact.note, max(width - len(start), 20)) or [""]
        lines.extend((start if number == 0 else " " * len(start)) + part for number, part in enumerate(wrapped))
    return "\n".join(line.rstrip() for line in lines)


def _value(fact: Fact) -> str:
    return f"{fact.value} {fact.unit}".rstrip()


def _title(summary: Summary) -> str:
    return f"{summary.recipe}: {summary.model} on {summary.data}, {summary.device}, seed {summary.seed}"
