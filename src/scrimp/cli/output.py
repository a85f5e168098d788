"""Standard output that may go away while a command works: a pipe that is closed, a terminal that is."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def output_may_vanish() -> Iterator[None]:
    """Within the block an error of standard output is no error, and what else is printed there goes nowhere.

    Work is worth more than its display: ``scrimp train | head`` trains to the end. An error of a file is one as ever.
    """
    try:
        yield
    except OSError as error:
        if error.filename is not None:  # only what opens a file by its name knows one
            raise
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 - for the rest of the process
