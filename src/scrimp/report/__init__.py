"""A run's record, and what people see of it: the table in the terminal and one self-contained page."""

from scrimp.report.page import render_page, write_page
from scrimp.report.record import Point, RunRecord, RunStatus, RunWriter, read_run
from scrimp.report.summary import Summary
from scrimp.report.table import summary_panel, summary_text

__all__ = [
    "Point",
    "RunRecord",
    "RunStatus",
    "RunWriter",
    "Summary",
    "read_run",
    "render_page",
    "summary_panel",
    "summary_text",
    "write_page",
]
