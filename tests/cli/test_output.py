"""What a vanished terminal may not hide."""

import errno
import sys

import pytest

from scrimp.cli.output import output_may_vanish


def test_standard_output_that_is_gone_is_no_error_and_stays_silent(monkeypatch):
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # put back afterwards
    before = sys.stdout
    with output_may_vanish():
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")
    assert sys.stdout is not before
    assert sys.stdout.write("goes nowhere")
    sys.stdout.close()


def test_what_has_nothing_to_do_with_the_output_is_an_error_as_ever():
    before = sys.stdout
    with pytest.raises(OSError, match="Too many open"), output_may_vanish():
        raise OSError(errno.EMFILE, "Too many open files")
    assert sys.stdout is before


def test_a_missing_file_is_an_error_as_ever(tmp_path):
    before = sys.stdout
    with pytest.raises(FileNotFoundError), output_may_vanish():
        (tmp_path / "summary.json").read_text()
    assert sys.stdout is before
