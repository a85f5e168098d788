"""Standard output that may go away while a command works: a pipe that is closed, a terminal that is."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def output_may_vanish() -> Iterator[None]:
    """Within the block an error of standard output is no error, and what else is printed there goes nowhere.

    Work is worth more than its display: ``scrimp train | head`` trains to the end.
    """
    try:
        yield
    except OSError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 - for the rest of the process
