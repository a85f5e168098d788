"""Muon for convolutions: momentum whose singular values are all made about 1, batched over kernels of equal shape."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import Optimizer

from scrimp.errors import ConfigError

_SMALLEST_NORM = torch.finfo(torch.float32).tiny  # zeros stay zeros
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


class Muon(Optimizer):
    """Steps along the orthogonalised momentum; kernels (out, in, height, width) count as matrices (out, the rest).

    ``auxiliary`` is any torch optimizer of the other parameters (biases, norms, the head). Its groups join this one's
    ``param_groups`` and its state this one's, so that one object is stepped, scheduled, saved and sliced.

    Example::

        groups = scrimp.param_groups(model, lr=0.05, weight_decay=1e-4, rules=[steps.bias_rule(64)])
        filters, rest = steps.split_filters(model, groups)
        sgd = torch.optim.SGD(rest, momentum=0.85, nesterov=True)
        optimizer = steps.Muon(filters, lr=0.24, momentum=0.6, num_iterations=3, renormalize=True, auxiliary=sgd)

    Args: params - as for every optimizer; at least two dimensions each. weight_decay - decoupled. num_iterations and
        coefficients - of the Newton-Schulz iteration, computed in ``dtype``. renormalize - before each step, every
        weight is given the norm sqrt(out), so that it has a direction only; for weights that a norm follows.
        shape_factor - multiplies the learning rate of a matrix of so many rows and columns; none by default.
    Raises: ConfigError - impossible settings, a parameter with fewer than two dimensions, or one that the auxiliary
        optimizer has as well; a sparse gradient.
    Cost: per parameter one momentum; per step and iteration three products of the smaller side's square, in a few
        kernels per shape instead of per parameter. No host sync.
    Source: K. Jordan et al., Muon (2024), and airbench94_muon for ``renormalize`` and its settings. Equal to
        ``torch.optim.Muon`` on matrices; that one refuses kernels and goes parameter by parameter.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        *,
        lr: float = 0.02,
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.0,
        num_iterations: int = 5,
        coefficients: tuple[float, float, float] = _COEFFICIENTS,
        eps: float = 1e-7,
        renormalize: bool = False,
        dtype: torch.dtype = torch.bfloat16,
        shape_factor: Callable[[int, int], float] | None = None,
        auxiliary: Optimizer | None = None,
    ) -> None:
        if not (lr >= 0 and 0 <= momentum < 1 and weight_decay >= 0 and num_iterations >= 1 and eps > 0):
            raise ConfigError(
                f"Muon: lr {lr}, momentum {momentum}, weight_decay {weight_decay}, num_iterations {num_iterations}, "
                f"eps {eps}; none may be negative, momentum has to be below 1, iterations and eps above 0"
            )
        self._auxiliary: Optimizer | None = None
        self._dtype, self._shape_factor = dtype, shape_factor
        defaults = {
            "lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay,
            "num_iterations": num_iterations, "coefficients": tuple(coefficients), "eps": eps,
            "renormalize": renormalize,
        }  # fmt: skip
        self._num_own = 0
        super().__init__(params, defaults)
        if auxiliary is not None:
            own = {id(parameter) for group in self.param_groups for parameter in group["params"]}
            if any(id(parameter) in own for group in auxiliary.param_groups for parameter in group["params"]):
                raise ConfigError(
                    "Muon: the auxiliary optimizer has a parameter that Muon has as well; see split_filters"
                )
            self._auxiliary = auxiliary
            self.state.update(auxiliary.state)
            self.param_groups.extend(auxiliary.param_groups)
            self._share()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters for Muon itself."""
        super().add_param_group(param_group)
        group = self.param_groups.pop()
        if flat := [tuple(p.shape) for p in group["params"] if p.dim() < 2]:
            raise ConfigError(
                f"Muon: parameters of shape {flat[0]} have no matrix form; give them to the auxiliary optimizer "
                "(split_filters does)"
            )
        self.param_groups.insert(self._num_own, group)
        self._num_own += 1
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of Muon and of the auxiliary optimizer. Parameters without gradient are left alone."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups[: self._num_own]:
            self._step_group(group)
        if self._auxiliary is not None:
            self._auxiliary.step()
        return loss

    def _step_group(self, group: Mapping[str, Any]) -> None:
        params = [parameter for parameter in group["params"] if parameter.grad is not None]
        if not params:
            return
        grads = [parameter.grad for parameter in params]
        if any(grad.is_sparse for grad in grads):
            raise ConfigError("Muon: a gradient is sparse; give that parameter to the auxiliary optimizer")
        for parameter in params:
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        momenta = [self.state[parameter]["momentum_buffer"] for parameter in params]
        torch._foreach_lerp_(momenta, grads, 1 - group["momentum"])
        directions = torch._foreach_lerp(grads, momenta, group["momentum"]) if group["nesterov"] else momenta
        if group["weight_decay"]:
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        if group["renormalize"]:
            renormalize_(params, [self.state[parameter].get("norm") for parameter in params])
        for members in _by_shape(directions):
            self._move(group, [params[i] for i in members], [directions[i] for i in members])

    def _move(self, group: Mapping[str, Any], params: list[Tensor], directions: list[Tensor]) -> None:
        """A step of parameters whose matrices have one shape."""
        matrices = torch.stack([direction.flatten(1) for direction in directions])
        steps = orthogonalize(
            matrices, num_iterations=group["num_iterations"], coefficients=group["coefficients"], eps=group["eps"],
            dtype=self._dtype,
        )  # fmt: skip
        factor = 1.0 if self._shape_factor is None else self._shape_factor(*matrices.shape[1:])
        shaped = [step.view(p.shape).to(p.dtype) for step, p in zip(steps.unbind(), params, strict=True)]
        if isinstance(group["lr"], Tensor):  # which a captured graph reads anew at each replay
            torch._foreach_mul_(shaped, group["lr"] * -factor)
            torch._foreach_add_(params, shaped)
        else:
            torch._foreach_add_(params, shaped, alpha=-group["lr"] * factor)

    @contextmanager
    def keeping_norms(self) -> Iterator[None]:
        """For a block in which weights lose channels: what is left of them keeps its norm as ``renormalize`` goes on.

        Without it the next step would blow them up to the norm that they had together with what is gone::

            with optimizer.keeping_norms():
                scrimp.remove_dead_channels_(model, optimizer)
        """
        groups = [group for group in self.param_groups[: self._num_own] if group["renormalize"]]
        before = [
            (parameter, parameter.shape, _wanted(self.state[parameter].get("norm"), parameter) / _norm(parameter))
            for group in groups for parameter in group["params"]
        ]  # fmt: skip
        yield
        for parameter, shape, factor in before:
            if parameter.shape != shape:
                self.state[parameter]["norm"] = factor * _norm(parameter)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As every optimizer's; the auxiliary's part is in it."""
        super().load_state_dict(state_dict)
        self._share()

    def __getstate__(self) -> dict[str, Any]:
        own = ("_auxiliary", "_dtype", "_shape_factor", "_num_own")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in own}}

    def _share(self) -> None:
        """One list of groups and one state for both."""
        if self._auxiliary is not None:
            self._auxiliary.param_groups = self.param_groups[self._num_own :]
            self._auxiliary.state = self.state


@torch.no_grad()
def renormalize_(params: list[Tensor], norms: Sequence[Tensor | None] | None = None) -> None:
    """Give each weight the norm sqrt(out) in place, as ``Muon(renormalize=True)`` does before each of its steps.

    ``norms`` has others for those that lost channels.
    """
    present = torch._foreach_clamp_min(torch._foreach_norm(params), _SMALLEST_NORM)
    wanted = [_wanted(norm, p) for norm, p in zip(norms or [None] * len(params), params, strict=True)]
    torch._foreach_mul_(params, [new / old for new, old in zip(wanted, present, strict=True)])


def _wanted(norm: Tensor | None, parameter: Tensor) -> Tensor | float:
    return math.sqrt(len(parameter)) if norm is None else norm


def _norm(parameter: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(parameter.detach())
    return norm.clamp(min=_SMALLEST_NORM)


def orthogonalize(
    matrices: Float[Tensor, "count rows columns"],
    *,
    num_iterations: int = 5,
    coefficients: tuple[float, float, float] = _COEFFICIENTS,
    eps: float = 1e-7,
    dtype: torch.dtype = torch.bfloat16,
) -> Float[Tensor, "count rows columns"]:
    """Each matrix with its singular vectors and singular values between about 0.7 and 1.2, in ``dtype``.

    The quintic Newton-Schulz iteration of Muon: an odd polynomial that is steep at 0, applied to the matrix divided by
    its norm. Zero matrices stay zero.
    """
    a, b, c = coefficients
    x = matrices.to(dtype)
    is_tall = x.shape[1] > x.shape[2]
    x = x.mT if is_tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    for _ in range(num_iterations):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x


def _by_shape(matrices: Sequence[Tensor]) -> list[list[int]]:
    """Positions of matrices that can be stacked."""
    found: dict[object, list[int]] = {}
    for position, matrix in enumerate(matrices):
        key = (len(matrix), matrix.numel(), matrix.dtype, matrix.device)
        found.setdefault(key, []).append(position)
    return list(found.values())
