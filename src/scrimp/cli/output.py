"""Standard output that may go away while a command works: a pipe that is closed, a terminal that is."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_VANISHED = {errno.EPIPE, errno.EIO, errno.EBADF, errno.ENXIO, errno.ENOSPC}


@contextmanager
def output_may_vanish() -> Iterator[None]:
    """Within the block an error of standard output is no error, and what else is printed there goes nowhere.

    Work is worth more than its display: ``scrimp train | head`` trains to the end. Any other error is one as ever.
    """
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno not in _VANISHED:
            raise
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 - for the rest of the process
