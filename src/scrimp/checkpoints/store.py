"""A store of checkpoints: a history that is as small as its codec makes it, and the newest ones bit by bit."""

import dataclasses
import os
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, overload

from torch import Tensor, nn
from torch.optim import Optimizer

from scrimp._core.structure_change import StructureChange
from scrimp.checkpoints.background import Background
from scrimp.checkpoints.catalogue import Catalogue
from scrimp.checkpoints.chain import Init
from scrimp.checkpoints.codec import Codec
from scrimp.checkpoints.files import Files, open_files
from scrimp.checkpoints.fit import find_misfits, with_own_kernels
from scrimp.checkpoints.history import Snapshot
from scrimp.checkpoints.layout import Layout, lay_out
from scrimp.checkpoints.parts import StoredPart, TensorPart, find_parts, lay_out_parts
from scrimp.checkpoints.reports import (
    CheckpointInfo,
    SaveReport,
    StoreReport,
    TensorReport,
    info_of,
    reports_of,
    stored_reports,
    sum_up,
)
from scrimp.checkpoints.residual import Residual
from scrimp.checkpoints.retention import collect, commit, delete
from scrimp.checkpoints.sharding import Ranks, distribute
from scrimp.checkpoints.writer import Retention, SnapshotWriter
from scrimp.errors import CheckpointNotFoundError, ConfigError, CorruptCheckpointError, FormatError

_GRACE_SECONDS = 3600.0


class CheckpointStore:
    """Checkpoints of one training run at a path or fsspec URL, each a step's model, optimizer and whatever else.

    The newest ``exact_tail`` checkpoints are kept bit by bit. Behind them lies the history: every checkpoint as a
    difference to the one before it, as lossy as ``codec`` says. A checkpoint exists as soon as its manifest does, which
    is written last and in one piece: a crash, a full disk or a kill leaves the former checkpoints as they were.
    Everything that is read is checked, down to each decoded tensor; nothing is unpickled.

    Args: path - a directory, or a URL such as ``s3://bucket/run`` (needs the extra ``fsspec``; one writer at a time).
        codec - how history is stored. exact_tail - how many of the newest checkpoints are exact; 0 for none.
        keyframe_every - begin the chain anew at least after so many checkpoints; by default only where a difference
        would not be smaller. keep_last - keep so many of the newest, and delete older ones, but for those whose step is
        a multiple of ``keep_every`` or that are pinned; ``None`` keeps all. init - makes the weights that training
        begins with, always the same: the first checkpoint is then the difference to them. sharded - every rank makes
        the store, saves and restores: each stores its part of the model's and optimizer's DTensors and its own
        ``extra``, the first all that is alike, and the manifest. Without it, one rank alone saves.

    Memory: one copy of the weights (what the next difference builds upon); with ``exact_tail=0`` or at a URL one more,
    of the weights before coding, which are read from the exact copy elsewhere. Methods raise what a save in
    the background raised before they do anything else. Not for use by several threads.

    Example::

        store = CheckpointStore("runs/a/checkpoints")
        store.save(step, model=model, optimizer=optimizer, extra={"loader": loader.state_dict()})
        extra = store.restore(model=model, optimizer=optimizer)
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        codec: Codec | None = None,
        exact_tail: int = 1,
        keyframe_every: int | None = None,
        keep_last: int | None = None,
        keep_every: int | None = None,
        init: Init | None = None,
        sharded: bool = False,
    ) -> None:
        for name, value, least in (
            ("exact_tail", exact_tail, 0), ("keyframe_every", keyframe_every, 1), ("keep_last", keep_last, 1),
            ("keep_every", keep_every, 1),
        ):  # fmt: skip
            if value is not None and value < least:
                raise ConfigError(f"{name} is {value}; it has to be at least {least}")
        if keep_every is not None and keep_last is None:
            raise ConfigError(f"keep_every is {keep_every}, but everything is kept; give keep_last as well")
        self.path = os.fspath(path)
        self.codec: Codec = codec if codec is not None else Residual()
        self._files: Files = open_files(path)
        self._catalogue = Catalogue(self._files, self.codec, init)
        self._background = Background()
        self._finished: list[SaveReport] = []
        retention = Retention(exact_tail, keyframe_every, keep_last, keep_every)
        self._ranks = Ranks(together=sharded)
        self._writer = SnapshotWriter(self._catalogue, self.codec, retention, self._ranks)

    @overload
    def save(
        self,
        step: int,
        *,
        model: nn.Module | None = ...,
        optimizer: Optimizer | None = ...,
        extra: Mapping[str, Any] | None = ...,
        change: StructureChange | None = ...,
        wait: Literal[True] = ...,
    ) -> SaveReport: ...

    @overload
    def save(
        self,
        step: int,
        *,
        model: nn.Module | None = ...,
        optimizer: Optimizer | None = ...,
        extra: Mapping[str, Any] | None = ...,
        change: StructureChange | None = ...,
        wait: bool,
    ) -> SaveReport | None: ...

    def save(
        self,
        step: int,
        *,
        model: nn.Module | None = None,
        optimizer: Optimizer | None = None,
        extra: Mapping[str, Any] | None = None,
        change: StructureChange | None = None,
        wait: bool = True,
    ) -> SaveReport | None:
        """Store a checkpoint of ``step``, replacing one of the same step.

        Args: extra - any nested state of dicts, lists, tuples, tensors, numbers and strings; tensors in it are exact
            unless their owner has tagged them with a role. change - everything that was removed from the model since
            the checkpoint before; without it, tensors of another shape begin a chain of their own. wait - if false,
            the state is copied, the rest happens behind the training loop, and the report comes from ``wait()``; a
            second save waits for the first.
        Raises: ConfigError - a value that cannot be stored; OSError - for instance a full disk; StoreBusyError -
            another process writes. The former checkpoints are as they were.
        Cost: with ``wait=False`` one copy of the state in memory.
        """
        started = time.perf_counter()
        self._background.wait()
        if step < 0:
            raise ConfigError(f"step is {step}; a step counts from 0")
        state: dict[str, Any] = {"step": step, "extra": dict(extra or {})}
        if model is not None:
            state["model"] = model.state_dict()
        if optimizer is not None:
            state["optimizer"] = optimizer.state_dict()
            state["optimizer_class"] = type(optimizer).__name__
        state, shards = self._ranks.own_part(state)
        laid_out = lay_out(state, model=model, optimizer=optimizer, shards=shards)
        return self._save(step, laid_out, change, started, wait=wait)

    def save_state(self, step: int, state: Mapping[str, Any], *, wait: bool = True) -> SaveReport | None:
        """Store a checkpoint from plain states: a dict of ``model``, ``optimizer``, ``extra`` and whatever else.

        Without the model at hand, its tensors of two or more dimensions count as weights, and others are exact; an
        optimizer's slots are known by name. Otherwise as ``save``.
        """
        started = time.perf_counter()
        self._background.wait()
        if step < 0:
            raise ConfigError(f"step is {step}; a step counts from 0")
        return self._save(step, lay_out({"extra": {}, **state, "step": step}), None, started, wait=wait)

    def save_parts(
        self, step: int, parts: Sequence[TensorPart], values: Mapping[str, Any] | None = None
    ) -> SaveReport | None:
        """Store a checkpoint from parts of tensors as another system cuts them; every rank names every tensor.

        ``values`` are JSON values; of a name on several ranks the first's counts. ``stored_parts`` finds all.
        Otherwise as ``save``.
        """
        started = time.perf_counter()
        self._background.wait()
        if step < 0:
            raise ConfigError(f"step is {step}; a step counts from 0")
        return self._save(step, lay_out_parts(step, parts, values or {}), None, started, wait=True)

    def stored_parts(self, step: int | None = None) -> tuple[list[StoredPart], Mapping[str, Any]]:
        """The parts of a checkpoint that ``save_parts`` stored (the newest by default), to be read one by one; values.

        Raises: as ``load``; ConfigError - it was saved otherwise.
        """
        self._background.wait()
        return find_parts(self._catalogue.readers(self._catalogue.existing(step)), self.path)

    def _save(
        self,
        step: int,
        laid_out: tuple[Layout, list[Any], dict[str, Tensor]],
        change: StructureChange | None,
        started: float,
        *,
        wait: bool,
    ) -> SaveReport | None:
        layout, scalars, tensors = laid_out
        if wait:
            return self._write(Snapshot(step, layout, scalars, tensors, change), started, None)
        copies = {path: tensor.clone() for path, tensor in tensors.items()}
        snapshot = Snapshot(step, layout, scalars, copies, change)
        held_seconds = time.perf_counter() - started
        self._background.start(lambda: self._finished.append(self._write(snapshot, started, held_seconds)))
        return None

    def _write(self, snapshot: Snapshot, started: float, held_seconds: float | None) -> SaveReport:
        manifest, errors = self._writer.write(snapshot)
        seconds = time.perf_counter() - started
        return SaveReport(
            step=snapshot.step,
            raw_bytes=manifest.raw_bytes,
            history_bytes=sum(shard.history.num_bytes for shard in manifest.shards),
            exact_bytes=sum(shard.exact.num_bytes for shard in manifest.shards if shard.exact),
            is_keyframe=manifest.is_keyframe,
            base_step=manifest.base_step,
            num_weights=manifest.num_weights,
            tensors=reports_of(snapshot.layout, errors),
            seconds=seconds,
            held_seconds=seconds if held_seconds is None else held_seconds,
        )

    def wait(self) -> tuple[SaveReport, ...]:
        """Wait until all is on disk; returns the reports of saves in the background since the last call.

        Raises: what the save raised.
        """
        self._background.wait()
        finished, self._finished = tuple(self._finished), []
        return finished

    def steps(self) -> list[int]:
        """The steps that are stored, in ascending order."""
        self._background.wait()
        return self._catalogue.steps()

    def load(
        self, step: int | None = None, *, only: str | Collection[str] | None = None, history: bool = False
    ) -> dict[str, Any]:
        """The state of ``step`` (the newest by default): ``step``, ``extra`` and what else was saved.

        ``only`` names parts by their paths (``"model"``, ``"model/conv.weight"``, ``"optimizer/state/0"``): then
        nothing else is decoded, and the state holds these tensors alone. ``history`` asks for what the history has of
        a step even while there is an exact copy of it: what will be left of it.

        Raises: CheckpointNotFoundError; CorruptCheckpointError - a file that is needed is missing, truncated or
            altered; FormatError - of another version; ConfigError - there is nothing under ``only``.
        Cost: decodes one payload per tensor and checkpoint since the last keyframe; an exact one, one per tensor.
        """
        self._background.wait()
        state: dict[str, Any] = self._catalogue.load(
            self._catalogue.existing(step), only, self._ranks.rank, history=history
        )
        return state

    def restore(
        self,
        step: int | None = None,
        *,
        model: nn.Module | None = None,
        optimizer: Optimizer | None = None,
    ) -> dict[str, Any]:
        """Load ``step`` (the newest by default) into ``model`` and ``optimizer``; returns what was saved as ``extra``.

        Names, shapes and dtypes are compared before anything is copied. Tensors go to the device of what they are
        restored into, wherever they were; an optimizer goes on with its own kernels (``fused``, ``capturable``, ...).

        Raises: as ``load``; ConfigError - the checkpoint holds no such part, or it does not fit; nothing was changed.
        """
        state = self.load(step)
        parts = {name: part for name, part in (("model", model), ("optimizer", optimizer)) if part is not None}
        for name in parts:
            if name not in state:
                raise ConfigError(f"the checkpoint of step {state['step']} in {self.path} was saved without a {name}")
        # torch copies what fits before it complains about the rest: so all of it is compared first
        for name, part in parts.items():
            if misfits := find_misfits(part, state[name], state.get("optimizer_class")):
                raise ConfigError(self._does_not_fit(name, state["step"], misfits) + "; nothing was changed")
        for name, part in parts.items():
            fitting = with_own_kernels(part, state[name])
            try:
                part.load_state_dict(distribute(part, fitting) if self._ranks.is_together else fitting)
            except (RuntimeError, ValueError, KeyError) as error:
                raise ConfigError(self._does_not_fit(name, state["step"], [str(error)])) from error
        extra: dict[str, Any] = state["extra"]
        return extra

    def describe(self, step: int | None = None) -> CheckpointInfo:
        """Sizes and place of one checkpoint (the newest by default), from its manifest alone.

        Raises: CheckpointNotFoundError, CorruptCheckpointError.
        """
        self._background.wait()
        return info_of(self._catalogue.manifest(self._catalogue.existing(step)))

    def tensors(self, step: int | None = None) -> tuple[TensorReport, ...]:
        """What the history holds of each tensor of a checkpoint (the newest by default): bytes and errors.

        Raises: CheckpointNotFoundError, CorruptCheckpointError. Cost: reads indexes; decodes nothing.
        """
        self._background.wait()
        manifest = self._catalogue.manifest(self._catalogue.existing(step))
        readers = (self._catalogue.reader(shard.history) for shard in manifest.shards)
        return tuple(report for reader in readers for report in stored_reports(reader))

    def report(self) -> StoreReport:
        """The whole store in numbers. Raises: CorruptCheckpointError - a manifest is broken."""
        self._background.wait()
        catalogue = self._catalogue
        infos = tuple(info_of(catalogue.manifest(step)) for step in catalogue.steps())
        return sum_up(infos, sum(catalogue.files.size(name) for name in catalogue.files.names()))

    def verify(self, step: int | None = None) -> list[int]:
        """Decode checkpoints in full, exact copies and history (all by default); returns their steps.

        Raises: CheckpointNotFoundError; CorruptCheckpointError - names every one that is broken, and why.
        """
        self._background.wait()
        steps = self._catalogue.steps() if step is None else [self._catalogue.existing(step)]
        broken: dict[int, str] = {}
        for one in steps:
            try:
                for entry in self._catalogue.manifest(one).files:
                    reader = self._catalogue.reader(entry)
                    for group in reader.layout.groups:
                        reader.decode(group.name)
            except (FormatError, CheckpointNotFoundError) as error:
                broken[one] = str(error)
        if broken:
            intact = [one for one in steps if one not in broken]
            listed = "; ".join(f"step {one}: {why}" for one, why in broken.items())
            raise CorruptCheckpointError(
                f"{len(broken)} of {len(steps)} checkpoints are broken: {listed}; intact: {intact}"
            )
        return steps

    def delete(self, step: int) -> None:
        """Remove a checkpoint. Those that build upon it are rewritten first and decode to the same bits as before.

        Raises: CheckpointNotFoundError; CorruptCheckpointError - it or one that builds upon it is broken; OSError.
        """
        self._background.wait()
        with self._files.writing():
            delete(self._catalogue, self._catalogue.existing(step))
        self._writer.forget()

    def pin(self, step: int, *, pinned: bool = True) -> None:
        """Keep a checkpoint whatever ``keep_last`` says, or no longer. Raises: CheckpointNotFoundError."""
        self._background.wait()
        with self._files.writing():
            manifest = self._catalogue.manifest(self._catalogue.existing(step))
            commit(self._catalogue, dataclasses.replace(manifest, is_pinned=pinned))

    def collect_garbage(self, *, grace_seconds: float = _GRACE_SECONDS) -> list[str]:
        """Remove files that no manifest names and that are older than ``grace_seconds``; returns their names.

        The grace protects a writer on another machine, whose files come before its manifest.

        Raises: CorruptCheckpointError - a manifest is broken; nothing was removed.
        """
        self._background.wait()
        with self._files.writing():
            return collect(self._catalogue, grace_seconds)

    def _does_not_fit(self, part: str, step: int, misfits: list[str]) -> str:
        more = f"; and {len(misfits) - 3} more" if len(misfits) > 3 else ""
        return (
            f"the {part} saved at step {step} in {self.path} does not fit the one given: {'; '.join(misfits[:3])}{more}"
        )
