"""What can be known of the loader that draws from a sampler. A sampler is not told by whom it is used, so look."""

import weakref
from dataclasses import dataclass
from typing import Any

from torch.utils.data import BatchSampler

from scrimp.errors import ConfigError

_FRAMES_TO_LOOK_AT = 16
REMEDY = (
    "Let the data set return the sample's index along with the sample and call "
    "pruner.reduce(losses, index=index); that is right under any order"
)


class LoaderIterator:
    """A DataLoader's iterator: whether it lives, and how many batches it has given to its loop, also after its end."""

    def __init__(self, iterator: Any) -> None:
        # its own attributes outlive it until the callback has read them: a weak reference alone would not know the end
        self._values: dict[str, Any] | None = vars(iterator)
        self._final = 0
        self._reference = weakref.ref(iterator, self._note_end)
        self.is_persistent = bool(getattr(iterator, "_persistent_workers", False))

    def _note_end(self, _: Any) -> None:
        self._final = self.num_batches
        self._values = None

    @property
    def is_alive(self) -> bool:
        """Whether a loop may still go on with it."""
        return self._reference() is not None

    @property
    def num_batches(self) -> int:
        """Batches that the loop has been given. A persistent iterator begins anew with every pass."""
        return self._final if self._values is None else int(self._values.get("_num_yielded", 0))

    def is_that_of(self, other: "LoaderIterator | None") -> bool:
        """Whether both are of one living iterator."""
        own = self._reference()
        return own is not None and other is not None and own is other._reference()


@dataclass(frozen=True)
class LoaderFacts:
    """What was found."""

    batch_size: int | None = None
    drop_last: bool = False
    iterator: LoaderIterator | None = None
    disorder: str | None = None
    """Why order does not tell which samples a batch holds."""
    num_dealt: int = 1
    """Processes to which something between sampler and loop deals the batches out."""
    is_counted: bool = False
    """Whether the iterator's number of batches tells how many samples its loop was given."""


def look_at_loader(frame: Any, num_shares: int, *, saves_state: bool) -> LoaderFacts:
    """The callers of a sampler's iterator, up to the DataLoader's iterator if there is one.

    Args: frame - the one that asks for the first index. num_shares - of which this sampler hands out one.
        saves_state - whether the sampler has a state that a loader would save.
    Raises: ConfigError - this sampler gives each process its share, and so does the loader; or the loader saves what
        runs ahead of the training.
    """
    batches, iterator, disorder, stranger, num_dealt = None, None, None, None, 1
    for _ in range(_FRAMES_TO_LOOK_AT):
        if frame is None:
            break
        owner, name = frame.f_locals.get("self"), getattr(frame.f_code, "co_qualname", frame.f_code.co_name)
        frame = frame.f_back
        kind = type(owner).__name__
        if hasattr(owner, "_sampler_iter") and hasattr(owner, "_num_workers"):
            iterator = owner
            if getattr(owner, "_in_order", True) is False and owner._num_workers > 0:
                disorder = "the DataLoader was made with in_order=False, so batches come in another order than drawn"
            if saves_state and kind == "_StatefulMultiProcessingDataLoaderIter":
                raise ConfigError(
                    "StatefulDataLoader with workers saves its sampler's state ahead of the training, for every batch; "
                    "give it sampler=pruner.positions(), and save pruner.state_dict() beside the loader's"
                )
            break
        if "Shard" in kind and getattr(owner, "num_processes", 1) > 1:
            num_dealt = owner.num_processes
            disorder = f"a {kind} deals the batches of this sampler out to {num_dealt} processes"
            if num_shares > 1:
                raise ConfigError(
                    f"{disorder}, but the pruner already gives each process its own share. Leave the sharding out, or "
                    f"make the pruner with rank=0, world_size=1. {REMEDY}"
                )
        elif _keeps_order(owner):
            batches = owner
        elif stranger is None and not _is_ours(owner):
            stranger = kind if owner is not None else name
    batch_size, drop_last = (None, False) if batches is None else (batches.batch_size, bool(batches.drop_last))
    if iterator is None:  # no DataLoader: whoever draws here draws for himself
        return LoaderFacts(batch_size, drop_last, None, disorder, num_dealt)
    if disorder is None and stranger is not None:
        disorder = (
            f"{stranger} stands between this sampler and the DataLoader, and may change the order of what it draws or "
            "leave some of it out"
        )
    if batches is None and stranger is None:
        batch_size = 1
    is_counted = stranger is None and num_dealt == 1 and "Stateful" not in type(iterator).__name__
    return LoaderFacts(batch_size, drop_last, LoaderIterator(iterator), disorder, num_dealt, is_counted)


def _keeps_order(owner: object) -> bool:
    """A BatchSampler of torch, or of torchdata, with the iteration that it has there."""
    iterate: Any = getattr(type(owner), "__iter__", None)
    is_torchdata = "BatchSampler" in type(owner).__name__ and type(owner).__module__.startswith("torchdata.")
    return (isinstance(owner, BatchSampler) and iterate is BatchSampler.__iter__) or is_torchdata


def _is_ours(owner: object) -> bool:
    return type(owner).__module__ == "scrimp.samples.positions"
