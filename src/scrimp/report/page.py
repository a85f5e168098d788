"""One self-contained HTML page per run: no network, no plotting library, readable on a phone and on paper."""

import base64
import hashlib
import importlib.util
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from scrimp._core.atomic_files import write_text
from scrimp.errors import MissingDependencyError
from scrimp.report.facts import Fact, facts
from scrimp.report.record import RunRecord, RunStatus, read_run
from scrimp.report.run_sections import SECTIONS
from scrimp.report.section import Section

PAGE_NAME = "report.html"

_UNSHOWABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]|\r(?!\n)")


def require_page_libraries() -> None:
    """Raise MissingDependencyError now, rather than after hours of training, if the page could not be written."""
    if importlib.util.find_spec("jinja2") is None:
        raise MissingDependencyError('the page needs jinja2, which is not installed: pip install "scrimp[train]"')


def write_page(run_dir: Path | str) -> Path:
    """Write ``report.html`` into a run directory, from its record alone, and return its path.

    Works for a run that has not finished too. Takes well under a second; a page is some 50 KB, however long the run.

    Raises: DataNotFoundError - there is no run in that directory. FormatError - a file of the record is corrupt.
    MissingDependencyError - jinja2 is not installed.
    """
    record = read_run(run_dir)
    path = record.run_dir / PAGE_NAME
    write_text(path, render_page(record))
    return path


def render_page(record: RunRecord) -> str:
    """The page as text. Every value of the record is escaped; the page can load nothing and run no script but its own.

    Control characters, as a text sample may hold, appear as their pictures (U+2400 and on), or as U+FFFD without one.

    Raises: MissingDependencyError - jinja2 is not installed.
    """
    return fill_page(
        kind="run",
        title=_setting(record, "recipe") or "A run",
        subtitle=[part for part in _subtitle(record) if part],
        status=record.status.value,
        last_word=_last_word(record),
        facts=facts(record),
        sections=[section for make in SECTIONS if (section := make(record)) is not None],
    )


def fill_page(
    *,
    kind: str,
    title: str,
    subtitle: Sequence[str],
    status: str,
    last_word: str,
    facts: Sequence[Fact],
    sections: Sequence[Section],
) -> str:
    """A page of some ``kind`` from its parts; all of them are escaped but finished figures.

    Raises: MissingDependencyError - jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined  # noqa: PLC0415 - optional package
    except ImportError as error:
        raise MissingDependencyError(
            'the page needs jinja2, which is not installed: pip install "scrimp[train]"'
        ) from error
    environment = Environment(
        loader=PackageLoader("scrimp.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("page.html.j2").render(
        kind=kind, title=title, subtitle=subtitle, status=status, last_word=last_word, facts=facts, sections=sections,
        style=_Trusted(_resource("page.css")), script=_Trusted(_resource("page.js")),
        script_digest=_digest(_resource("page.js")),
    )  # fmt: skip
    return _UNSHOWABLE.sub(_picture, page)


class _Trusted(str):
    """Text of our own package, which a template takes as it is."""

    __slots__ = ()

    def __html__(self) -> str:
        return str(self)


def _resource(name: str) -> str:
    return (resources.files("scrimp.report") / "templates" / name).read_text(encoding="utf-8")


def _digest(script: str) -> str:
    """The hash by which the page's security policy allows this script and no other."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _picture(match: re.Match[str]) -> str:
    """What is shown in place of a control character."""
    code = ord(match.group())
    return chr(0x2400 + code) if code < 0x20 else "\u2421" if code == 0x7F else "\ufffd"


def _setting(record: RunRecord, key: str) -> str:
    """A setting as the summary has it, or else the configuration."""
    value = getattr(record.summary, key, None) or record.config.get(key)
    return "" if value is None else str(value)


def _subtitle(record: RunRecord) -> list[str]:
    seed = _setting(record, "seed")
    finished = record.summary.finished_at if record.summary is not None else None
    return [
        *(_setting(record, key) for key in ("data", "model", "device")),
        f"seed {seed}" if seed else "",
        (finished or "").replace("T", " ")[:16],
    ]


def _last_word(record: RunRecord) -> str:
    """Why a run stopped early, if it said so."""
    if record.status is RunStatus.FINISHED or not record.metrics or record.metrics[-1]["event"] != "note":
        return ""
    return str(record.metrics[-1].get("text", ""))
