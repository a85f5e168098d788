"""The command line, ``scrimp COMMAND``: one file per command, and what they show."""

from scrimp.cli.main import main as main

__all__ = ["main"]
