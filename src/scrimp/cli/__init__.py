"""The command line: ``scrimp train``, ``scrimp report``."""

from scrimp.cli.main import main as main

__all__ = ["main"]
