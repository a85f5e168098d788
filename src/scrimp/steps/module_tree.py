"""What the tricks need to know of a model: its modes, its slots, its graph, its names without wrappers."""

import contextlib
import re
from collections.abc import Iterable, Iterator
from typing import TypeVar

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

T = TypeVar("T")

_COMPILED = re.compile(r"(^|\.)_orig_mod(?=\.|$)")


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode; afterwards every module is in the mode that it was in before."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def slots_of(model: nn.Module, module: nn.Module) -> list[tuple[nn.Module, str]]:
    """Every place in the tree where ``module`` hangs, as (parent, attribute name); none if it is the model itself."""
    return [(parent, name) for parent in model.modules() for name, child in parent._modules.items() if child is module]


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, _BatchNorm) or super().is_leaf_module(m, module_qualified_name)


def trace(model: nn.Module) -> fx.Graph | None:
    """The model's graph with torch's modules and batch norms as nodes; ``None`` if it cannot be had.

    A forward pass that takes another way in training than in evaluation has no one graph, and gives ``None``.
    """
    graphs = []
    modes = [(module, module.training) for module in model.modules()]
    try:
        for mode in (False, True):
            model.train(mode)
            graphs.append(_Tracer().trace(model))
    except Exception:  # whatever a model's own code raises on being traced
        return None
    finally:
        for module, mode in modes:
            module.training = mode
    return graphs[1] if str(graphs[0]) == str(graphs[1]) else None


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside of ``torch.compile``, DistributedDataParallel and DataParallel."""
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def plain_names(named: Iterable[tuple[str, T]]) -> Iterator[tuple[str, T]]:
    """What is named, without the parts that ``torch.compile`` puts before the names inside of what it wraps."""
    for name, value in named:
        yield _COMPILED.sub("", str(name)).lstrip("."), value
