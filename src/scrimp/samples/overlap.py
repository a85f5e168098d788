"""Passes that were begun before the present one, and whether their loops still go on."""

import weakref
from dataclasses import dataclass

from scrimp.errors import ConfigError
from scrimp.samples.handout import Handout
from scrimp.samples.loader_facts import REMEDY, LoaderIterator


@dataclass(frozen=True)
class _Earlier:
    """A pass as it stood when another was begun."""

    handout: weakref.ref[Handout]
    """Lives as long as its loader may draw from it."""
    iterator: LoaderIterator | None
    num_handed: int
    num_batches: int

    def goes_on(self, present: LoaderIterator | None) -> bool:
        """Whether its loop was given more since."""
        if self.iterator is not None and self.iterator.is_that_of(present):
            return False  # a persistent iterator, which begins anew
        handout = self.handout()
        return (handout is not None and handout.num_handed > self.num_handed) or (
            self.iterator is not None and self.iterator.num_batches > self.num_batches
        )

    def may_go_on(self, present: LoaderIterator | None) -> bool:
        """Whether somebody still holds its loader's iterator."""
        return self.iterator is not None and self.iterator.is_alive and not self.iterator.is_that_of(present)

    @property
    def is_forgotten(self) -> bool:
        return self.handout() is None and (self.iterator is None or not self.iterator.is_alive)


class EarlierPasses:
    """Those whose loops somebody may go on with."""

    def __init__(self) -> None:
        self._passes: list[_Earlier] = []

    def add(self, handout: Handout) -> None:
        """Another pass than ``handout`` begins."""
        iterator = handout.facts.iterator
        num_batches = 0 if iterator is None else iterator.num_batches
        self._passes = [earlier for earlier in self._passes if not earlier.is_forgotten]
        self._passes.append(_Earlier(weakref.ref(handout), iterator, handout.num_handed, num_batches))

    def check(self, present: Handout) -> None:
        """Called when losses come by order. Raises: ConfigError - they may be those of an earlier pass."""
        iterator = present.facts.iterator
        is_left = present.is_untouched and iterator is not None and not iterator.is_alive
        for earlier in self._passes:
            if earlier.goes_on(iterator) or (is_left and earlier.may_go_on(iterator)):
                raise ConfigError(
                    "a second iterator of the loader was begun while the first is still in use (next(iter(loader)) "
                    "inside the loop, for example), so order does not tell of which pass these losses are. Iterate one "
                    f"at a time (del an iterator that is not used any more), or: {REMEDY}"
                )

    def clear(self) -> None:
        """Forget them all."""
        self._passes.clear()
