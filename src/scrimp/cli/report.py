"""``scrimp report``."""

from collections.abc import Sequence
from pathlib import Path

from scrimp.cli.flags import parse
from scrimp.cli.main import EXIT_DONE, Parser
from scrimp.cli.tables import show_comparison
from scrimp.errors import ConfigError
from scrimp.report.comparison import PLAN_NAME, Comparison, read_comparison
from scrimp.report.comparison_files import write_comparison
from scrimp.report.page import write_page
from scrimp.report.record import read_run
from scrimp.report.table import summary_text


def report_command(words: Sequence[str]) -> int:
    """Write the pages of runs again from their records and print their tables; returns the exit code."""
    parser = Parser(
        prog="scrimp report",
        description="Write report.html of each run or comparison again from its records, and print its table.",
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="directory of a run, such as runs/digits-001")
    namespace = parse(parser, list(words))
    if not namespace.runs:
        raise ConfigError("name at least one run, for example: scrimp report runs/digits-001")
    # all are read before any page is written
    found = [read_comparison(path) if (path / PLAN_NAME).exists() else read_run(path) for path in namespace.runs]
    for record in found:
        if isinstance(record, Comparison):
            show_comparison(record)
            print(*write_comparison(record), sep="\n")
            continue
        page = write_page(record.run_dir)
        if record.summary is not None:
            print(summary_text(record.summary))
        else:
            steps = max((line["step"] for line in record.metrics), default=0)
            print(f"{record.run_dir}: {record.status.value} after step {steps:,}")
        print(f"page: {page}")
    return EXIT_DONE
