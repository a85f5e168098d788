"""``scrimp COMMAND``: finds the command, and turns every error that we know into one sentence and an exit code."""

import argparse
import io
import os
import sys
from collections.abc import Sequence
from contextlib import suppress

import scrimp
from scrimp.errors import (
    CheckpointNotFoundError,
    ConfigError,
    DataError,
    FormatError,
    MissingDependencyError,
    RunExistsError,
    ScrimpError,
)

EXIT_DONE, EXIT_FAILED, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 0, 1, 2, 130
_BAD_INPUT = (CheckpointNotFoundError, ConfigError, DataError, FormatError, MissingDependencyError, RunExistsError)

_HELP = """\
usage: scrimp COMMAND [...]

Make training cheaper, and see what each saving cost.

commands:
  train [RECIPE]   train a model; without a recipe, handwritten digits in under a minute
  compare [RECIPE] train plainly, with each saving and with all, and show what each saved
  report RUN...    write the page of finished or interrupted runs again, and show their tables
  checkpoints ...  list, check, export, import and delete stored checkpoints
  pack RUN         pack the model of a finished run into a small file
  unpack FILE|RUN  write the weights of a packed model as safetensors
  export RUN       write the model of a finished run for use without scrimp
  inspect FILE|RUN show what a packed model consists of

`scrimp COMMAND --help` explains a command. `scrimp --version` prints the version.
"""


class Parser(argparse.ArgumentParser):
    """An argparse parser that raises ConfigError, so that all bad input is reported in one way."""

    def error(self, message: str) -> None:  # type: ignore[override]
        """Raise instead of exiting."""
        raise ConfigError(f"{message} (see {self.prog} --help)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 1 failed, 2 bad input, 130 interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    command, rest = (words[0], words[1:]) if words else ("--help", [])
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name must not fail on a terminal that cannot show it
    try:
        if command in ("-h", "--help", "help"):
            print(_HELP, end="")
            return EXIT_DONE
        if command == "--version":
            print(f"scrimp {scrimp.__version__}")
            return EXIT_DONE
        return _run(command, rest)
    except KeyboardInterrupt:
        _complain("interrupted; what was done since the last checkpoint, if there was one, is lost")
        return EXIT_INTERRUPTED
    except _BAD_INPUT as error:
        _complain(f"error: {error}")
        return EXIT_BAD_INPUT
    except OSError as error:
        _complain(f"error: {error.strerror or error}{f' ({error.filename})' if error.filename else ''}")
        return EXIT_FAILED
    except ScrimpError as error:
        _complain(f"error: {error}")
        return EXIT_FAILED


def _complain(text: str) -> None:
    """One line on standard error, of the first process only."""
    if os.environ.get("RANK", "0") == "0":
        with suppress(OSError):  # the terminal may be gone
            print(f"scrimp: {text}", file=sys.stderr)


def _run(command: str, rest: list[str]) -> int:
    # imported here: `scrimp --help` should not wait for data and report libraries
    if command == "train":
        from scrimp.cli.train import train_command  # noqa: PLC0415

        return train_command(rest)
    if command == "compare":
        from scrimp.cli.compare import compare_command  # noqa: PLC0415

        return compare_command(rest)
    if command == "report":
        from scrimp.cli.report import report_command  # noqa: PLC0415

        return report_command(rest)
    if command == "checkpoints":
        from scrimp.cli.checkpoints import checkpoints_command  # noqa: PLC0415

        return checkpoints_command(rest)
    if command in ("pack", "unpack", "export", "inspect"):
        from scrimp.cli import packed  # noqa: PLC0415

        commands = {
            "pack": packed.pack_command, "unpack": packed.unpack_command, "export": packed.export_command,
            "inspect": packed.inspect_command,
        }  # fmt: skip
        return commands[command](rest)
    from scrimp._core.names import nearest  # noqa: PLC0415

    known = ["train", "compare", "report", "checkpoints", "pack", "unpack", "export", "inspect"]
    raise ConfigError(f"no command is called {command!r}{nearest(command, known)}")
