"""Checkpoints: what training can be resumed from, on disk."""

from scrimp.checkpoints.exact import ExactCheckpoints as ExactCheckpoints
from scrimp.checkpoints.exact import SaveReport as SaveReport

__all__ = ["ExactCheckpoints", "SaveReport"]
