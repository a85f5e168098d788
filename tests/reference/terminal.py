"""A terminal of its own for a command, which can be closed under it as a window is."""

import os
import pty
import re
import select
import subprocess
import sys
from pathlib import Path

from tests.reference.command import SCRIMP, environment

# a session has to take its terminal by itself; the tests may run under nohup, whose deafness would be inherited
_TAKE = (
    "import fcntl, os, signal, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "signal.signal(signal.SIGHUP, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
)


class Terminal:
    """``scrimp ...`` in a terminal; ``shown`` is what it has written, as far as ``read`` was called."""

    def __init__(self, words: list[str], cwd: Path, columns: int = 100) -> None:
        self._ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", _TAKE, *SCRIMP, *words], cwd=cwd, start_new_session=True,
            env=environment(TERM="xterm", COLUMNS=str(columns)), stdin=theirs, stdout=theirs, stderr=theirs,
        )  # fmt: skip
        os.close(theirs)
        self.shown = ""

    def read(self) -> str:
        """What has been shown until now; waits for a moment if there is nothing new."""
        if select.select([self._ours], [], [], 0.01)[0]:
            self.shown += os.read(self._ours, 65536).decode(errors="replace")
        return self.shown

    def read_to_end(self) -> str:
        """All that is shown until the command ends, without control sequences."""
        try:
            while True:
                self.read()
        except OSError:  # how Linux says that the other end was closed
            os.close(self._ours)
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self.shown)

    def close(self) -> None:
        """As when a window is closed: SIGHUP to the command, and an error for whatever it still writes."""
        os.close(self._ours)
