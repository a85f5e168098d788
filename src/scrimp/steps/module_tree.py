"""What the tricks that change a model in place need to know of it: its modes, its slots, its graph."""

import contextlib
from collections.abc import Iterator

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm


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
