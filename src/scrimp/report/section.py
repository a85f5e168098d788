"""What a section of a run's page is made of."""

from dataclasses import dataclass

from scrimp.report.figures import Figure


@dataclass(frozen=True)
class Table:
    """Rows of figures as text, under a header; the first column names the row and the others are aligned right."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Section:
    """One part of the page: a title, and what is under it.

    ``pairs`` are names with their values, ``links`` texts with where they lead, beside the page.
    """

    title: str
    note: str = ""
    figures: tuple[Figure, ...] = ()
    tables: tuple[Table, ...] = ()
    pairs: tuple[tuple[str, str], ...] = ()
    preformatted: str = ""
    command: str = ""
    links: tuple[tuple[str, str], ...] = ()
