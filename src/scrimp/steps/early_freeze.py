"""Parameters that stop learning after some steps, such as the bias behind whitening filters."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from scrimp.errors import ConfigError, FormatError


class EarlyFreeze:
    """After ``num_steps`` steps, or ``freeze()``, leaves parameters as they are: no update, no decay, no momentum.

    It takes their gradients away before each further step. Nothing else changes, so a compiled model is not compiled
    again and DistributedDataParallel does not miss a gradient; what is spared is not the gradient's computation but
    what its further changes would do.

    Not for optimizers that mix parameters, as LBFGS does: their steps move what has no gradient, too.

    With ``stop_backward`` that computation is spared as well: the parameters then need no gradient, and where nothing
    below them needs one either, the backward pass ends behind them. All other gradients are the same bit by bit. A
    compiled model is compiled once more for it, and DistributedDataParallel has to be put around the model anew, when
    ``is_frozen`` has become true.

    Example::

        conv = steps.whiten_input_(model, images)
        freeze = steps.EarlyFreeze(optimizer, [conv.bias], num_steps=3 * len(loader))

    Args: optimizer - it counts the steps. parameters - of it. num_steps - steps that still train them; None where
        their number is not known beforehand, as with epochs of which data pruning decides the length. stop_backward -
        see above.
    Raises: ConfigError - no parameters, one that the optimizer has not, or a negative number of steps.
    Cost: none. With ``stop_backward`` behind a first convolution of which only the bias was trained, the second one's
        gradient towards its input is saved. Source: K. Jordan, arXiv 2404.00498 (the whitening bias, after 3 epochs).
    """

    def __init__(
        self,
        optimizer: Optimizer,
        parameters: Iterable[nn.Parameter | None],
        *,
        num_steps: int | None = None,
        stop_backward: bool = False,
    ) -> None:
        given = list(parameters)
        self._parameters = [parameter for parameter in given if parameter is not None]
        if not given or len(self._parameters) != len(given):
            raise ConfigError("EarlyFreeze: there is no such parameter (has the convolution a bias?)")
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        if not all(id(parameter) in held for parameter in self._parameters):
            raise ConfigError("EarlyFreeze: the optimizer does not hold every one of these parameters")
        is_number = isinstance(num_steps, int) and not isinstance(num_steps, bool)
        if num_steps is not None and (not is_number or num_steps < 0):
            raise ConfigError(f"EarlyFreeze: num_steps is {num_steps!r}; it has to be a number of steps, 0 or more")
        self._num_steps = num_steps
        # a parameter that gets no gradient as it is, is somebody else's to switch on
        self._switched = [p for p in self._parameters if p.requires_grad] if stop_backward else []
        self._was_told = False
        self._handles = [
            optimizer.register_step_pre_hook(self._before_step), optimizer.register_step_post_hook(self.count_step)
        ]  # fmt: skip
        self._set_steps_done(0)

    def _before_step(
        self, _optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if not self.is_frozen:
            return None
        self._drop_gradients()
        if callable(kwargs.get("closure")):
            return args, {**kwargs, "closure": self._without_gradients(kwargs["closure"])}
        if len(args) > 1 and callable(args[1]):  # behind the optimizer
            return (args[0], self._without_gradients(args[1]), *args[2:]), kwargs
        return None

    def _without_gradients(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        """``closure``, which computes the gradients that a step uses, without those of what is frozen."""

        def frozen_closure() -> Any:
            loss = closure()
            self._drop_gradients()
            return loss

        return frozen_closure

    def _drop_gradients(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None

    def count_step(self, *_: Any) -> None:
        """Count a step; to be called for one of which the optimizer's hooks do not hear, as a CUDA graph replays it."""
        self._set_steps_done(self._steps_done + 1)

    def _set_steps_done(self, steps_done: int) -> None:
        self._steps_done = steps_done
        self._stop_backward_if_frozen()

    def _stop_backward_if_frozen(self) -> None:
        for parameter in self._switched:
            parameter.requires_grad_(not self.is_frozen)

    def freeze(self) -> None:
        """Leave the parameters alone from the next step on."""
        self._was_told = True
        self._stop_backward_if_frozen()

    @property
    def is_frozen(self) -> bool:
        """Whether the next step leaves the parameters alone."""
        return self._was_told or (self._num_steps is not None and self._steps_done >= self._num_steps)

    def remove(self) -> None:
        """Let the parameters learn again."""
        for handle in self._handles:
            handle.remove()
        for parameter in self._switched:
            parameter.requires_grad_(True)

    def state_dict(self) -> dict[str, int | bool]:
        """The steps done, and whether ``freeze`` was called."""
        return {"steps_done": self._steps_done, "was_told": self._was_told}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``. Raises FormatError if it is not one."""
        found = state if isinstance(state, Mapping) else {}
        steps_done, was_told = found.get("steps_done"), found.get("was_told", False)
        if type(steps_done) is not int or steps_done < 0 or not isinstance(was_told, bool):
            raise FormatError(f"this is not the state of an EarlyFreeze: {state!r}")
        self._was_told = was_told
        self._set_steps_done(steps_done)
