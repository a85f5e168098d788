"""Checkpoints: what training can be resumed from, on disk."""

from scrimp.checkpoints.bound import Bound as Bound
from scrimp.checkpoints.bound import BoundKind as BoundKind
from scrimp.checkpoints.codec import Codec as Codec
from scrimp.checkpoints.codec import Encoded as Encoded
from scrimp.checkpoints.codec import Group as Group
from scrimp.checkpoints.codec import TensorError as TensorError
from scrimp.checkpoints.exchange import ImportReport as ImportReport
from scrimp.checkpoints.exchange import export_state as export_state
from scrimp.checkpoints.exchange import export_weights as export_weights
from scrimp.checkpoints.exchange import import_checkpoint as import_checkpoint
from scrimp.checkpoints.excp import ExCP as ExCP
from scrimp.checkpoints.excp import ExCPReference as ExCPReference
from scrimp.checkpoints.lossless import Lossless as Lossless
from scrimp.checkpoints.parts import StoredPart as StoredPart
from scrimp.checkpoints.parts import TensorPart as TensorPart
from scrimp.checkpoints.reports import CheckpointInfo as CheckpointInfo
from scrimp.checkpoints.reports import SaveReport as SaveReport
from scrimp.checkpoints.reports import StoreReport as StoreReport
from scrimp.checkpoints.reports import TensorReport as TensorReport
from scrimp.checkpoints.residual import Residual as Residual
from scrimp.checkpoints.store import CheckpointStore as CheckpointStore

__all__ = [
    "Bound",
    "BoundKind",
    "CheckpointInfo",
    "CheckpointStore",
    "Codec",
    "Encoded",
    "ExCP",
    "ExCPReference",
    "Group",
    "ImportReport",
    "Lossless",
    "Residual",
    "SaveReport",
    "StoreReport",
    "StoredPart",
    "TensorError",
    "TensorPart",
    "TensorReport",
    "export_state",
    "export_weights",
    "import_checkpoint",
]
