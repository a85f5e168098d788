"""``scrimp report``."""

from collections.abc import Sequence
from pathlib import Path

from scrimp.cli.flags import parse
from scrimp.cli.main import EXIT_DONE, Parser
from scrimp.errors import ConfigError
from scrimp.report.page import write_page
from scrimp.report.record import read_run
from scrimp.report.table import summary_text


def report_command(words: Sequence[str]) -> int:
    """Write the pages of runs again from their records and print their tables; returns the exit code."""
    parser = Parser(
        prog="scrimp report",
        description="Write report.html of each run again from its record, and print its table.",
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="directory of a run, such as runs/digits-001")
    namespace = parse(parser, list(words))
    if not namespace.runs:
        raise ConfigError("name at least one run, for example: scrimp report runs/digits-001")
    records = [read_run(run_dir) for run_dir in namespace.runs]  # all are read before any page is written
    for record in records:
        page = write_page(record.run_dir)
        if record.summary is not None:
            print(summary_text(record.summary))
        else:
            steps = max((line["step"] for line in record.metrics), default=0)
            print(f"{record.run_dir}: {record.status.value} after step {steps:,}")
        print(f"page: {page}")
    return EXIT_DONE
