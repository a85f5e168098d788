"""A running average of the weights, for evaluation (EMA) or to go on from (Lookahead)."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from scrimp._core.structure import StructureChange
from scrimp._core.structure_plan import StructurePlan, named_tensors, some
from scrimp._core.tensor_role import TensorRole, tag
from scrimp.errors import ConfigError, FormatError, StructureError
from scrimp.steps.module_tree import plain_names, unwrap


class WeightAverage:
    """An exponential moving average of a model's parameters and floating-point buffers; integers are copied.

    Call ``update()`` after each optimizer step. Each ``every`` steps, ``average = rho * average + (1 - rho) * model``
    with ``rho = decay ** every``, starting from the weights at construction. Evaluate inside ``with average.swap():``.

    With ``copy_back`` the model then goes on from the average (Lookahead); ``copy_to_model()`` ends training on it.

    Averages of parameters of less than 32 bits are kept in float32. Names are those of the model without wrappers:
    ``torch.compile`` and ``DistributedDataParallel`` may come before or after, also between a checkpoint and its
    loading. ``scrimp.apply_structure_change(..., copies=[average])`` slices it with the model.

    Example::

        average = steps.WeightAverage(model, decay=0.99, every=5)
        for inputs, targets in loader:
            ...
            optimizer.step()
            average.update()
        with average.swap():
            accuracy = evaluate(model)

    Args: decay - per step, from 0 to 1; or a function of the number of steps done that gives rho itself, for schedules.
        every - steps between updates.
    Raises: ConfigError - impossible values, or a model without parameters or with lazy ones.
    Cost: a copy of the model; one pass over it each ``every`` steps (batched on CUDA); ``swap`` holds another copy
        while it lasts. No host sync.
    Source: D. Page, "Bag of Tricks" (every 5 steps, 0.99); Zhang et al., "Lookahead Optimizer", arXiv 1907.08610.
        Differs from torch's ``AveragedModel``: buffers are averaged and counters are not, and the average starts at
        the initial weights.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        decay: float | Callable[[int], float] = 0.99,
        every: int = 1,
        copy_back: bool = False,
    ) -> None:
        if not callable(decay) and not 0 <= decay <= 1:
            raise ConfigError(f"WeightAverage: decay is {decay}; it has to be from 0 to 1")
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ConfigError(f"WeightAverage: every is {every!r}; it has to be a positive number of steps")
        self._model = unwrap(model)
        self._decay, self._every, self._copy_back = decay, every, copy_back
        self._num_steps = 0
        self._swapped = False
        if not any(True for _ in self._model.parameters()):
            raise ConfigError(f"WeightAverage: {type(self._model).__name__} has no parameters to average")
        if lazy := [name for name, tensor in named_tensors(self._model).items() if is_lazy(tensor)]:
            raise ConfigError(f"WeightAverage: {some(lazy)} is lazy and has no shape yet; run the model once first")
        self._average: dict[str, Tensor] = {}
        self.restart()

    def restart(self) -> None:
        """Begin again at the model's present weights, with its present names and shapes; steps are counted on."""
        self._refuse_while_swapped("restart()")
        copies: dict[int, Tensor] = {}
        tensors = dict(plain_names(named_tensors(self._model).items()))
        self._average = {name: copies.setdefault(id(t), _copy(t)) for name, t in tensors.items()}

    @property
    def num_steps(self) -> int:
        """How often ``update()`` was called."""
        return self._num_steps

    def named_tensors(self) -> dict[str, Tensor]:
        """The averages by the names of the model's parameters and buffers; not copies."""
        return dict(self._average)

    @torch.no_grad()
    def update(self) -> None:
        """Count an optimizer step; after each ``every`` of them, take the model into the average.

        Raises: StructureError - the model has other tensors than it had, or the average is swapped in.
        """
        self._refuse_while_swapped("update()")
        self._num_steps += 1
        if self._num_steps % self._every:
            return
        decay = self._decay(self._num_steps) if callable(self._decay) else self._decay**self._every
        pairs = self._pairs()
        floating = [(average, tensor) for average, tensor in pairs if average.is_floating_point()]
        if floating:
            tensors = [tensor.detach().to(average.device, average.dtype) for average, tensor in floating]
            torch._foreach_lerp_([average for average, _ in floating], tensors, 1 - decay)
        for average, tensor in pairs:
            if not average.is_floating_point():
                average.copy_(tensor)
        if self._copy_back:
            self.copy_to_model()

    @torch.no_grad()
    def copy_to_model(self) -> None:
        """Set the model to the average, for good."""
        self._refuse_while_swapped("copy_to_model()")
        for average, tensor in self._pairs():
            tensor.copy_(average)

    @contextlib.contextmanager
    def swap(self) -> Iterator[nn.Module]:
        """The model with the averaged weights; afterwards it has its own again, bit by bit, whatever happened."""
        self._refuse_while_swapped("swap()")
        pairs = self._pairs()
        own = [tensor.detach().clone() for _, tensor in pairs]
        self._swapped = True
        try:
            with torch.no_grad():
                for average, tensor in pairs:
                    tensor.copy_(average)
            yield self._model
        finally:
            self._swapped = False
            with torch.no_grad():
                for (_, tensor), value in zip(pairs, own, strict=True):
                    tensor.copy_(value)

    def apply_structure_change(self, change: StructureChange) -> None:
        """Slice the averages. Raises StructureError, and changes nothing, when they have not the shapes."""
        self._refuse_while_swapped("a change of structure")
        plan = StructurePlan()
        plain = StructureChange(dict(plain_names(change.kept.items())), dict(plain_names(change.modules.items())))
        plan.add_dict(self._average, plain, "WeightAverage", names=list(self._average))
        plan.commit()

    def state_dict(self) -> dict[str, Any]:
        """The steps done and copies of the averages."""
        average = {name: tensor.detach().clone() for name, tensor in self._average.items()}
        buffers = plain_names(self._model.named_buffers(remove_duplicate=False))
        roles = {f"average/{name}": TensorRole.BUFFER for name, buffer in buffers if buffer.is_floating_point()}
        state = {"num_steps": self._num_steps, "average": average}
        return tag(state, {"average": TensorRole.WEIGHT, **roles})

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``, which may have been saved with a compiled or wrapped model.

        Raises: FormatError - not such a state. StructureError - names are missing or unknown, or shapes differ; every
            tensor has to be there. Nothing is changed then.
        """
        self._refuse_while_swapped("load_state_dict()")
        try:
            num_steps, stored = int(state["num_steps"]), dict(state["average"])
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(f"this is not the state of a WeightAverage: {error!r}") from error
        told = dict(plain_names(stored.items()))
        if told and all(name.startswith("module.") for name in told) and not told.keys() & self._average.keys():
            told = {name.removeprefix("module."): tensor for name, tensor in told.items()}
        if differing := sorted(told.keys() ^ self._average.keys()):
            raise StructureError(f"the stored average is of another model: {some(differing)} is only in one of them")
        for name, tensor in self._average.items():
            if told[name].shape != tensor.shape:
                raise StructureError(
                    f"the stored average of {name!r} has shape {tuple(told[name].shape)}, the model "
                    f"{tuple(tensor.shape)}; restore the model's structure first"
                )
        for name, tensor in self._average.items():
            tensor.copy_(told[name])
        self._num_steps = num_steps

    def _pairs(self) -> list[tuple[Tensor, Tensor]]:
        """Each average with the model's tensor, tied ones once."""
        tensors = dict(plain_names(named_tensors(self._model).items()))
        if differing := sorted(tensors.keys() ^ self._average.keys()):
            raise StructureError(
                f"WeightAverage: {some(differing)} is in the model or in its average but not in both; make the average "
                "after the model's last change"
            )
        unique = {id(tensor): (self._average[name], tensor, name) for name, tensor in tensors.items()}
        for average, tensor, name in unique.values():
            if average.shape != tensor.shape:
                raise StructureError(
                    f"WeightAverage: {name!r} has shape {tuple(tensor.shape)} in the model and {tuple(average.shape)} "
                    "in the average; pass it to apply_structure_change(..., copies=[average])"
                )
        return [(average, tensor) for average, tensor, _ in unique.values()]

    def _refuse_while_swapped(self, what: str) -> None:
        if self._swapped:
            raise StructureError(
                f"WeightAverage: {what} inside swap(), where the model holds the average; leave it first"
            )


def _copy(tensor: Tensor) -> Tensor:
    small = tensor.is_floating_point() and tensor.element_size() < 4
    return tensor.detach().to(torch.float32 if small else tensor.dtype, copy=True)
