"""Elementwise functions as one kernel where that is worth it: on a GPU, where a small layer is all launches."""

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from scrimp.errors import NoEffectWarning

Function = Callable[..., Sequence[Tensor]]


def compiled_on_gpu(function: Function) -> Function:
    """``function``, compiled by torch when ``fused=True`` is given, or by default when its first tensor is on a GPU.

    Sizes are dynamic, so that nothing is compiled again when channels go. When torch cannot compile here (no compiler,
    no Triton) it runs as it is from then on, and a warning says so once. Inside of a model that is itself compiled it
    is part of that.
    """
    state: dict[str, Any] = {}

    @functools.wraps(function)
    def run(*tensors: Tensor, fused: bool | None = None) -> Sequence[Tensor]:
        wanted = tensors[0].is_cuda if fused is None else fused
        if not wanted or torch.compiler.is_compiling() or "broken" in state:
            return function(*tensors)
        if "compiled" not in state:
            state["compiled"] = torch.compile(function, dynamic=True)
        try:
            result: Sequence[Tensor] = state["compiled"](*tensors)
        except Exception as error:
            state["broken"] = True
            reason = (str(error).splitlines() or [""])[0][:200]
            warnings.warn(
                f"the quantiser could not be compiled ({type(error).__name__}: {reason}); it runs operation by "
                "operation, which is slower",
                NoEffectWarning,
                stacklevel=2,
            )
            return function(*tensors)
        return result

    return run
