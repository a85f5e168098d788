"""What is in a store: manifests, and readers of the files that they name."""

from collections.abc import Callable, Collection
from typing import Any

from torch import Tensor

from scrimp.checkpoints.chain import BaseState, Init, InitialState, StateReader, find_codec
from scrimp.checkpoints.codec import Codec
from scrimp.checkpoints.container import Container
from scrimp.checkpoints.files import Files
from scrimp.checkpoints.layout import Slot
from scrimp.checkpoints.manifest import Base, FileEntry, Manifest, manifest_name, step_of
from scrimp.checkpoints.sharding import paste
from scrimp.errors import CheckpointNotFoundError, ConfigError, CorruptCheckpointError, FormatError


class Catalogue:
    """The checkpoints in a place. Reads anew what may have changed; changes nothing."""

    def __init__(self, files: Files, codec: Codec, init: Init | None) -> None:
        self.files = files
        self._find_codec, self._init = find_codec(codec), init
        self._initial: InitialState | None = None

    @property
    def where(self) -> str:
        """The place, for messages."""
        return self.files.where

    def steps(self) -> list[int]:
        """The steps that have a manifest, in ascending order."""
        return sorted(step for name in self.files.names() if (step := step_of(name)) is not None)

    def existing(self, step: int | None) -> int:
        """``step``, or the newest for ``None``. Raises: CheckpointNotFoundError."""
        steps = self.steps()
        if not steps:
            raise CheckpointNotFoundError(f"no checkpoint in {self.where}")
        wanted = steps[-1] if step is None else step
        if wanted not in steps:
            raise CheckpointNotFoundError(f"no checkpoint of step {wanted} in {self.where}; there are {steps}")
        return wanted

    def manifest(self, step: int) -> Manifest:
        """Raises: CheckpointNotFoundError, CorruptCheckpointError."""
        name = manifest_name(step)
        manifest = Manifest.from_bytes(self.files.read(name), f"{self.where}/{name}")
        if manifest.step != step:
            raise CorruptCheckpointError(f"{self.where}/{name} is the manifest of step {manifest.step}")
        return manifest

    def manifest_or_none(self, step: int) -> Manifest | None:
        """The manifest, or ``None`` when there is none that can be read."""
        try:
            return self.manifest(step)
        except (FormatError, CheckpointNotFoundError):
            return None

    def children(self, step: int) -> list[Manifest]:
        """The checkpoints whose history is the difference to that of ``step``."""
        manifests = (self.manifest_or_none(other) for other in self.steps() if other != step)
        return [manifest for manifest in manifests if manifest is not None and manifest.base_step == step]

    def reader(self, entry: FileEntry) -> StateReader:
        """The file, opened and checked. Raises: CheckpointNotFoundError, CorruptCheckpointError, FormatError."""
        container = Container(self.files, entry.name, entry.digest)
        reader = StateReader(container, self._open_base, self._find_codec)
        if reader.state != entry.state:
            raise container.corrupt("its state is not the one that the manifest names")
        return reader

    def readers(self, step: int, *, history: bool = False) -> list[StateReader]:
        """The file of each rank that gives a step: its exact copy if there is one, unless ``history`` is asked for.

        Raises: as ``reader``.
        """
        shards = self.manifest(step).shards
        return [self.reader(shard.history if history else shard.exact or shard.history) for shard in shards]

    def initial_state(self) -> InitialState | None:
        """What the init function makes, if there is one."""
        if self._initial is None and self._init is not None:
            self._initial = InitialState(self._init)
        return self._initial

    def load(self, step: int, only: str | Collection[str] | None, rank: int, *, history: bool = False) -> Any:
        """The state of a step, or a part of it; parts of several ranks are put together, ``extra`` is of ``rank``."""
        readers = self.readers(step, history=history)
        reader = readers[0]
        is_wanted = _selection(only)
        tensors = _decoded(reader, is_wanted)
        if any(slot.shard is not None for one in readers for group in one.layout.groups for slot in group.slots):
            tensors = _put_together(readers, tensors, is_wanted)
        if only is not None and not tensors:
            paths = [slot.path for group in reader.layout.groups for slot in group.slots]
            raise ConfigError(
                f"the checkpoint of step {step} holds no tensor under {only!r}; it has {', '.join(paths[:5])}, ..."
            )
        state = reader.layout.assemble(tensors, reader.scalars)
        if 0 < rank < len(readers) and "extra" in state:
            own = readers[rank]
            of_extra = _decoded(own, lambda path: path.startswith("extra/") and is_wanted(path))
            state["extra"] = own.layout.assemble(of_extra, own.scalars, part="extra")
        return state

    def _open_base(self, base: Base) -> BaseState:
        if base.step is None:
            return self._open_initial(base)
        try:
            shards = self.manifest(base.step).shards
        except CheckpointNotFoundError as error:
            raise CorruptCheckpointError(
                f"the checkpoint of step {base.step}, which others build upon, is lost ({error})"
            ) from error
        entry = next((shard.history for shard in shards if shard.history.state == base.state), None)
        if entry is None:
            raise CorruptCheckpointError(f"step {base.step} in {self.where} is not the state that others build upon")
        try:
            return self.reader(entry)
        except CheckpointNotFoundError as error:
            raise CorruptCheckpointError(
                f"the history of step {base.step}, which others build upon, is lost ({error})"
            ) from error

    def _open_initial(self, base: Base) -> InitialState:
        initial = self.initial_state()
        if initial is None:
            raise CorruptCheckpointError(
                f"the history in {self.where} begins with an init function; give it: CheckpointStore(path, init=...)"
            )
        if initial.base != base:
            raise CorruptCheckpointError(
                f"the init function makes other weights than those that the history in {self.where} begins with"
            )
        return initial


def _decoded(reader: StateReader, is_wanted: Callable[[str], bool]) -> dict[str, Tensor]:
    """The wanted tensors of a file by path."""
    tensors: dict[str, Tensor] = {}
    for group in reader.layout.groups:
        slots = group.slots_for(is_wanted)
        if slots:
            unpacked = group.unpack(reader.decode(group.name, slots))
            tensors.update({path: tensor for path, tensor in unpacked.items() if is_wanted(path)})
    return tensors


def _put_together(
    readers: list[StateReader], first: dict[str, Tensor], is_wanted: Callable[[str], bool]
) -> dict[str, Tensor]:
    """Tensors of which every rank has stored a part, as wholes; others as the first rank has them."""
    parts: dict[str, list[tuple[Slot, Tensor]]] = {}
    for number, reader in enumerate(readers):
        slots = {slot.path: slot for group in reader.layout.groups for slot in group.slots if slot.shard is not None}
        own = first if number == 0 else _decoded(reader, lambda path, slots=slots: path in slots and is_wanted(path))  # type: ignore[misc]
        for path, slot in slots.items():
            if path in own:
                parts.setdefault(path, []).append((slot, own[path]))
    return {**first, **{path: paste(found, path) for path, found in parts.items()}}


def _selection(only: str | Collection[str] | None) -> Callable[[str], bool]:
    """Whether a path is one of those named by ``only``, or under one."""
    prefixes = None if only is None else [only] if isinstance(only, str) else list(only)
    return lambda path: prefixes is None or any(path == p or path.startswith(f"{p}/") for p in prefixes)
