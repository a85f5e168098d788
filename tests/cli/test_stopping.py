"""Signals that ask to stop: which are handled, which stay ignored, and what is there afterwards."""

import os
import signal

import pytest

from scrimp.cli.stopping import on_stop

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def _as_before():
    former = {number: signal.getsignal(number) for number in STOPS}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
    yield
    for number, handler in former.items():
        signal.signal(number, handler)


def test_each_is_handled_and_given_back():
    former = [signal.getsignal(number) for number in STOPS]
    seen = []
    with on_stop(seen.append):
        for number in STOPS:
            os.kill(os.getpid(), number)
    assert seen == list(STOPS)
    assert [signal.getsignal(number) for number in STOPS] == former


def test_under_nohup_a_closed_terminal_stops_nothing_and_ctrl_c_in_the_background_does():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    seen = []
    with on_stop(seen.append):
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGINT)
    assert seen == [signal.SIGINT]
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
