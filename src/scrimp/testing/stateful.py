"""The shared suite for everything that has state: round trip, stop and resume, no hand on the global generators."""

import random
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from scrimp._core.rng import capture_global_rng, restore_global_rng
from scrimp._core.state_tree import flatten_state, unflatten_state
from scrimp.errors import ScrimpError


class Stateful(Protocol):
    """What the suite needs of an object."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors and JSON values (dicts, lists, tuples, numbers, strings, ``None``) that tell everything."""

    def load_state_dict(self, state: dict[str, Any], /) -> Any:
        """Take over a state."""


S = TypeVar("S", bound=Stateful)


def check_stateful(make: Callable[[], S], advance: Callable[[S], Any], *, num_steps: int = 4) -> None:
    """All checks of this module, as one call.

    Args: make - a fresh object, the same each time. advance - one step; deterministic; returns what an observer sees of
        it (tensors and plain values). num_steps - how far to go; a resume is tried from every step.
    Raises: AssertionError - the first check that failed, and where.
    Cost: about num_steps squared steps.
    """
    check_round_trip(make, advance, num_steps=num_steps)
    check_resume(make, advance, num_steps=num_steps)

    def use() -> None:
        instance = make()
        for _ in range(num_steps):
            advance(instance)
        make().load_state_dict(copy_state(instance.state_dict()))

    check_global_rng_untouched(use)


def check_round_trip(make: Callable[[], S], advance: Callable[[S], Any], *, num_steps: int = 4) -> None:
    """A state is storable and complete: written, read and loaded into a fresh object, it comes out of that unchanged.

    Tried on a fresh object and after each of ``num_steps`` steps. Raises: AssertionError - the message names the key.
    """
    instance = make()
    for step in range(num_steps + 1):
        state = instance.state_dict()
        stored = copy_state(state)
        fresh = make()
        fresh.load_state_dict(copy_state(stored))
        assert_same_state(fresh.state_dict(), stored, f"the state that was loaded after {step} steps")
        if step < num_steps:
            advance(instance)


def check_resume(make: Callable[[], S], advance: Callable[[S], Any], *, num_steps: int = 4) -> None:
    """Stop and resume is bit-identical: k steps, save, load into a fresh object, and the rest shows what it would have.

    Tried for every k from 0 to ``num_steps``; the states at the end are compared as well.

    Raises: AssertionError - the message names k, the step and the key.
    """
    whole = make()
    expected = [copy_state(advance(whole)) for _ in range(num_steps)]
    final = copy_state(whole.state_dict())
    again = make()
    for step in range(num_steps):
        assert_same_state(advance(again), expected[step], f"step {step + 1} of a second, uninterrupted run")
    for stop in range(num_steps + 1):
        first = make()
        for _ in range(stop):
            advance(first)
        resumed = make()
        resumed.load_state_dict(copy_state(first.state_dict()))
        for step in range(stop, num_steps):
            assert_same_state(advance(resumed), expected[step], f"step {step + 1} of a run resumed after step {stop}")
        assert_same_state(resumed.state_dict(), final, f"the final state of a run resumed after step {stop}")


def check_global_rng_untouched(action: Callable[[], Any]) -> None:
    """``action`` neither draws from nor seeds the global generators of torch, Python and NumPy.

    The generators are moved on before the action, so that seeding with the seed they had is noticed, and put back
    afterwards.

    Raises: AssertionError - the message names the generator.
    """
    at_start = copy_state(capture_global_rng())
    try:
        torch.rand(())
        random.random()
        np.random.random()  # noqa: NPY002 - the global generator is what is watched
        before = copy_state(capture_global_rng())
        action()
        assert_same_state(capture_global_rng(), before, "the state of the global random generators")
    finally:
        restore_global_rng(at_start)


def copy_state(state: Any) -> Any:
    """``state`` as it comes back from a file: through JSON text and safetensors bytes, sharing no memory.

    Raises: AssertionError - it holds something else than tensors and JSON values; the message names the key.
    """
    try:
        tensors, text = flatten_state(state)
    except ScrimpError as error:
        raise AssertionError(str(error)) from error
    return unflatten_state(safetensors.torch.load(safetensors.torch.save(tensors)), text)


def assert_same_state(actual: Any, expected: Any, what: str = "the state") -> None:
    """Bit for bit the same nested values: types, keys, shapes, dtypes and every byte; NaN equals the same NaN.

    Tensors are compared where they are, on CPU copies; strides and devices do not count.

    Raises: AssertionError - the message says what, names the first key that differs, and shows both values.
    """
    difference = _difference(actual, expected, "")
    if difference is not None:
        raise AssertionError(f"{what} differs at {difference}")


def _difference(actual: Any, expected: Any, path: str) -> str | None:
    """The first difference as ``'path': actual instead of expected``."""
    here = repr(path or ".")
    if isinstance(actual, Tensor) and isinstance(expected, Tensor):
        difference = _tensor_difference(actual, expected)
        return None if difference is None else f"{here}: {difference}"
    if isinstance(actual, Mapping) and isinstance(expected, Mapping):
        if actual.keys() != expected.keys():
            missing, added = (
                sorted(expected.keys() - actual.keys(), key=str),
                sorted(actual.keys() - expected.keys(), key=str),
            )
            return f"{here}: keys missing {missing}, added {added}"
        pairs = [(key, actual[key], expected[key]) for key in expected]
    elif type(actual) is not type(expected):
        return f"{here}: {actual!r} ({type(actual).__name__}) instead of {expected!r} ({type(expected).__name__})"
    elif isinstance(actual, list | tuple):
        if len(actual) != len(expected):
            return f"{here}: {len(actual)} items instead of {len(expected)}"
        pairs = [(i, a, e) for i, (a, e) in enumerate(zip(actual, expected, strict=True))]
    else:
        same = actual == expected or (actual != actual and expected != expected)  # noqa: PLR0124 - NaN
        return None if same else f"{here}: {actual!r} instead of {expected!r}"
    children = (_difference(a, e, f"{path}/{key}" if path else str(key)) for key, a, e in pairs)
    return next((child for child in children if child is not None), None)


def _tensor_difference(actual: Tensor, expected: Tensor) -> str | None:
    if actual.dtype != expected.dtype or actual.shape != expected.shape:
        return f"{actual.dtype} {tuple(actual.shape)} instead of {expected.dtype} {tuple(expected.shape)}"
    if actual.numel() == 0:
        return None
    actual, expected = actual.detach().cpu().contiguous().view(-1), expected.detach().cpu().contiguous().view(-1)
    differs = (actual.view(torch.uint8) != expected.view(torch.uint8)).view(actual.numel(), -1).any(1)
    if not differs.any():
        return None
    first = int(differs.nonzero()[0])
    return (
        f"{int(differs.sum())} of {differs.numel()} values differ, first at flat index {first}: "
        f"{actual[first].item()!r} instead of {expected[first].item()!r}"
    )
