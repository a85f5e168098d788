"""What asks a command to stop: Ctrl-C, SIGTERM, and SIGHUP, which comes when its terminal is closed."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def on_stop(handle: Callable[[int], None]) -> Iterator[None]:
    """Within the block ``handle`` is called with the number of each such signal.

    A SIGHUP that is ignored stays so: nohup asked for that. An ignored SIGINT does not: shells ignore it for whatever
    they start in the background, where it is then sent on purpose.
    """

    def handler(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        handle(number)

    is_nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    handled = [number for number in _STOPS if not (number == signal.SIGHUP and is_nohup)]
    former = {number: signal.signal(number, handler) for number in handled}
    try:
        yield
    finally:
        for number, before in former.items():
            signal.signal(number, before)
