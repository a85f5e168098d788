"""scrimp: cheaper training, in samples, steps, bits and checkpoint bytes."""

import importlib as _importlib
import typing as _typing

if _typing.TYPE_CHECKING:
    from scrimp import bits as bits
    from scrimp import checkpoints as checkpoints
    from scrimp import samples as samples
    from scrimp import steps as steps
    from scrimp._core.param_groups import Rule as Rule
    from scrimp._core.param_groups import no_decay_rule as no_decay_rule
    from scrimp._core.param_groups import param_groups as param_groups
    from scrimp._core.structure import StructureChange as StructureChange
    from scrimp._core.structure import apply_structure_ as apply_structure_
    from scrimp._core.structure import apply_structure_change as apply_structure_change
    from scrimp._core.structure import read_structure as read_structure
    from scrimp.bits import export as export
    from scrimp.bits import pack as pack
    from scrimp.bits import remove_dead_channels_ as remove_dead_channels_
    from scrimp.bits import self_compress_ as self_compress_
    from scrimp.bits import size_penalty as size_penalty
    from scrimp.bits import size_report as size_report
    from scrimp.bits import unpack as unpack
    from scrimp.checkpoints import CheckpointStore as CheckpointStore
    from scrimp.samples import InfoBatch as InfoBatch
    from scrimp.samples import SamplePruner as SamplePruner

__version__ = "0.1.0.dev0"

__all__ = [
    "CheckpointStore",
    "InfoBatch",
    "Rule",
    "SamplePruner",
    "StructureChange",
    "apply_structure_",
    "apply_structure_change",
    "bits",
    "checkpoints",
    "export",
    "no_decay_rule",
    "pack",
    "param_groups",
    "read_structure",
    "remove_dead_channels_",
    "samples",
    "self_compress_",
    "size_penalty",
    "size_report",
    "steps",
    "unpack",
]

# Names are looked up when they are first used: `scrimp --help` does not wait for torch.
_PACKAGES = ("bits", "checkpoints", "errors", "samples", "steps")
_HOMES = {
    "scrimp._core.param_groups": ("Rule", "no_decay_rule", "param_groups"),
    "scrimp._core.structure": ("StructureChange", "apply_structure_", "apply_structure_change", "read_structure"),
    "scrimp.bits": (
        "export", "pack", "remove_dead_channels_", "self_compress_", "size_penalty", "size_report", "unpack",
    ),
    "scrimp.checkpoints": ("CheckpointStore",),
    "scrimp.samples": ("InfoBatch", "SamplePruner"),
}  # fmt: skip
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> _typing.Any:
    """The package or the object called ``name``; found once, it is an attribute like any other."""
    if name in _PACKAGES:
        return _importlib.import_module(f"scrimp.{name}")
    if name not in _HOME_OF:
        raise AttributeError(f"module 'scrimp' has no attribute {name!r}")
    value = getattr(_importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, whether they have been used or not."""
    return sorted({*globals(), *__all__})
