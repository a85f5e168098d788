"""Writing a checkpoint into a store: what it builds upon, its files, the manifest, what goes then."""

import math
from collections.abc import Mapping, MutableMapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from torch import Tensor

from scrimp._core.tensor_role import TensorRole
from scrimp.checkpoints.catalogue import Catalogue
from scrimp.checkpoints.chain import BaseState, StateReader
from scrimp.checkpoints.codec import Codec, TensorError
from scrimp.checkpoints.history import HistoryWriter, Recent, Snapshot, Written
from scrimp.checkpoints.layout import Layout
from scrimp.checkpoints.lossless import Lossless
from scrimp.checkpoints.manifest import Base, Manifest, ShardEntry
from scrimp.checkpoints.retention import collect, commit, delete, demote, drop_old
from scrimp.checkpoints.sharding import Ranks
from scrimp.errors import CheckpointNotFoundError, FormatError


@dataclass(frozen=True)
class Retention:
    """How many checkpoints are exact, stand alone, and are kept; as ``CheckpointStore`` explains."""

    exact_tail: int
    keyframe_every: int | None
    keep_last: int | None
    keep_every: int | None


@dataclass(frozen=True)
class _Part:
    """What one rank has written."""

    shard: ShardEntry
    raw_bytes: int
    num_weights: int
    hops: int
    is_exact: bool


class SnapshotWriter:
    """Writes checkpoints one after another. With several ranks, each of them has one, and all write at once."""

    def __init__(self, catalogue: Catalogue, codec: Codec, retention: Retention, ranks: Ranks) -> None:
        self._catalogue, self._codec, self._retention, self._ranks = catalogue, codec, retention, ranks
        self._recent: Recent | None = None
        self._is_swept = False
        self._with_copy: set[int] | None = None

    def forget(self) -> None:
        """Read the next base from its files."""
        self._recent = None

    def write(self, snapshot: Snapshot) -> tuple[Manifest, Mapping[str, TensorError]]:
        """Store a snapshot; returns its manifest, and the errors of what this rank has stored.

        Raises: OSError, on every rank when it was on one; the former checkpoints are as they were.
        Cost with several ranks: three small collectives.
        """
        ranks = self._ranks
        with ExitStack() as held:
            base_step = ranks.from_first(lambda: self._prepare(snapshot.step, held))
            errors: dict[str, TensorError] = {}
            parts = ranks.gather(lambda: self._write_part(snapshot, base_step, errors))
            manifest: Manifest = ranks.from_first(lambda: self._finish(snapshot.step, parts))
        return manifest, errors

    def _prepare(self, step: int, held: ExitStack) -> int | None:
        """Lock the store, clear the step's place; returns the step to build upon."""
        catalogue = self._catalogue
        held.enter_context(catalogue.files.writing())
        if not self._is_swept:  # what a killed process left: with the lock held, nobody else is writing it
            self._is_swept = True
            if catalogue.files.is_lockable:
                with suppress(FormatError):  # with a broken manifest nobody knows what is debris
                    collect(catalogue, grace_seconds=-math.inf)
        former = catalogue.steps()
        if step in former and catalogue.children(step):
            delete(catalogue, step)
        return max((one for one in former if one < step), default=None)

    def _write_part(self, snapshot: Snapshot, base_step: int | None, errors: dict[str, TensorError]) -> _Part:
        try:
            base, base_layout, true, key_bytes, hops = self._base(base_step)
            written = self._encode(snapshot, base, base_layout, true, key_bytes)
        except (FormatError, CheckpointNotFoundError):
            # a history that is broken must not keep a run from being saved
            hops = 0
            written = self._encode(snapshot, None, None, {}, {})
        self._recent = written.recent
        errors.update(written.errors)
        stands_alone = written.history.base is None or written.history.base.step is None
        return _Part(
            ShardEntry(written.history, written.exact, self._ranks.suffix),
            snapshot.layout.raw_bytes,
            snapshot.layout.num_weights,
            0 if stands_alone else hops + 1,
            written.is_exact,
        )

    def _encode(
        self,
        snapshot: Snapshot,
        base: BaseState | None,
        base_layout: Layout | None,
        true: MutableMapping[str, dict[str, Tensor]],
        key_bytes: Mapping[str, int],
    ) -> Written:
        files = self._catalogue.files
        wants_copy = self._retention.exact_tail > 0 and not isinstance(self._codec, Lossless)
        with ExitStack() as opened:
            history = opened.enter_context(files.new_file())
            exact = opened.enter_context(files.new_file()) if wants_copy else None
            return HistoryWriter(self._codec).write(
                snapshot, base, base_layout=base_layout, true=true, key_bytes=key_bytes, history=history, exact=exact,
                suffix=self._ranks.suffix, keep_true=not (exact is not None and files.is_lockable),
            )  # fmt: skip

    def _base(
        self, step: int | None
    ) -> tuple[BaseState | None, Layout | None, MutableMapping[str, dict[str, Tensor]], Mapping[str, int], int]:
        """What the next checkpoint builds upon: the state, its layout, the true weights there, sizes, hops."""
        recent, self._recent = self._recent, None  # used up while the next one is made
        if step is None:
            return self._catalogue.initial_state(), None, {}, {}, 0
        manifest = self._catalogue.manifest(step)
        every, number = self._retention.keyframe_every, self._ranks.rank
        if (every is not None and manifest.hops + 1 >= every) or number >= len(manifest.shards):
            return None, None, {}, {}, 0
        shard = manifest.shards[number]
        if recent is not None and recent.base == Base(step, shard.history.state):
            # an exact copy nearby need not be in memory as well
            reads_copy = shard.exact is not None and self._catalogue.files.is_lockable
            known = self._true_values(shard) if reads_copy else recent.true
            return recent, recent.layout, known, recent.key_bytes, manifest.hops
        reader = self._catalogue.reader(shard.history)
        true = self._true_values(shard)
        sizes = {name: one.key_bytes for name, one in reader.entries.items()}
        return reader, reader.layout, true, sizes, manifest.hops

    def _true_values(self, shard: ShardEntry) -> MutableMapping[str, dict[str, Tensor]]:
        """The weights of an exact copy. They are no more than a hint to the codec: without them it does as well."""
        with suppress(FormatError, CheckpointNotFoundError):
            if shard.exact is not None:
                return _TrueValues(self._catalogue.reader(shard.exact), self._codec.base_roles)
        return {}

    def _finish(self, step: int, parts: list[_Part]) -> Manifest:
        catalogue, retention = self._catalogue, self._retention
        manifest = Manifest(
            step=step,
            raw_bytes=sum(part.raw_bytes for part in parts),
            num_weights=sum(part.num_weights for part in parts),
            saved_at=datetime.now(UTC).isoformat(timespec="seconds"),
            hops=max(part.hops for part in parts),
            is_exact=all(part.is_exact for part in parts),
            shards=tuple(part.shard for part in parts),
        )
        commit(catalogue, manifest, catalogue.manifest_or_none(step))
        steps = catalogue.steps()
        tail = {step, *steps[-retention.exact_tail :]} if retention.exact_tail else set()
        # all are looked at once, and then only those that had a copy: a history may have thousands of manifests
        demote(catalogue, sorted((set(steps) if self._with_copy is None else self._with_copy) - tail))
        self._with_copy = tail
        if retention.keep_last is not None:
            drop_old(catalogue, keep_last=retention.keep_last, keep_every=retention.keep_every, newest=step)
        return manifest


class _TrueValues(dict[str, dict[str, Tensor]]):
    """The values of an exact copy by group, read when asked for; of each group what a codec can use."""

    def __init__(self, reader: StateReader, roles: frozenset[TensorRole]) -> None:
        super().__init__()
        self._reader, self._roles = reader, roles

    def get(self, name: str, default: Any = None) -> Any:
        """The group, or ``default`` when there is none that can be read."""
        group = self._reader.layout.by_name.get(name)
        if group is None or group.is_bundle:
            return default
        try:
            return self._reader.decode(name, [slot.name for slot in group.slots if slot.role in self._roles])
        except (FormatError, CheckpointNotFoundError):
            return default
