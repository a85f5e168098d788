"""What a comparison leaves beside its runs: the table as JSON and Markdown, and its page."""

from pathlib import Path

from scrimp._core.atomic_files import write_json, write_text
from scrimp.report.comparison import Comparison, comparison_dict
from scrimp.report.comparison_page import render_comparison
from scrimp.report.comparison_table import comparison_markdown
from scrimp.report.page import PAGE_NAME

JSON_NAME = "comparison.json"
MARKDOWN_NAME = "comparison.md"


def write_comparison(comparison: Comparison) -> list[Path]:
    """Write ``comparison.json``, ``comparison.md`` and ``report.html`` into its directory; returns their paths.

    Raises: MissingDependencyError - jinja2 is not installed. OSError.
    """
    files = [comparison.directory / name for name in (JSON_NAME, MARKDOWN_NAME, PAGE_NAME)]
    write_json(files[0], comparison_dict(comparison))
    write_text(files[1], comparison_markdown(comparison))
    write_text(files[2], render_comparison(comparison))
    return files
