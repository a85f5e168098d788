"""Another scale for all batch norms without another training: the exact reparametrisation behind frozen scales."""

import operator
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from scrimp._core.param_groups import Rule
from scrimp.errors import ConfigError, NoEffectWarning
from scrimp.steps.module_tree import trace

# f(c * x) == c * f(x) for every c > 0
_HOMOGENEOUS_MODULES = (
    nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.Identity, nn.Flatten, nn.Unflatten, nn.modules.dropout._DropoutNd,
    nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AvgPoolNd, nn.modules.pooling._AdaptiveMaxPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd, nn.ZeroPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d,
)  # fmt: skip
_HOMOGENEOUS_FUNCTIONS = {
    functional.relu, functional.leaky_relu, functional.max_pool2d, functional.avg_pool2d, functional.dropout,
    functional.adaptive_max_pool2d, functional.adaptive_avg_pool2d, torch.flatten, torch.relu, torch.amax, torch.mean,
    operator.getitem, operator.neg,
}  # fmt: skip
_HOMOGENEOUS_METHODS = {"flatten", "view", "reshape", "mean", "amax", "sum", "contiguous", "permute", "transpose"}
_SUMS = {operator.add, operator.iadd, operator.sub, operator.isub, torch.add, torch.sub, torch.cat}
_PRODUCTS = {operator.mul, operator.imul, operator.truediv, operator.itruediv, torch.mul, torch.div}


@dataclass
class _Plan:
    """Which factor each tensor is multiplied by, and what else is set; made whole before anything is touched."""

    tensors: dict[int, tuple[Tensor, float]] = field(default_factory=dict)
    attributes: dict[tuple[int, str], tuple[nn.Module, str, float]] = field(default_factory=dict)

    def multiply(self, tensor: Tensor | None, factor: float, where: str) -> None:
        if tensor is not None and self.tensors.setdefault(id(tensor), (tensor, factor))[1] != factor:
            raise ConfigError(f"absorb_bn_scale_: {where} is used twice, at activations of different scale")

    def multiply_attribute(self, module: nn.Module, name: str, factor: float, where: str) -> None:
        entry = (module, name, getattr(module, name) * factor)
        if self.attributes.setdefault((id(module), name), entry)[2] != entry[2]:
            raise ConfigError(f"absorb_bn_scale_: {where} is used twice, at activations of different scale")

    def commit(self) -> None:
        with torch.no_grad():
            for tensor, factor in self.tensors.values():
                tensor.mul_(factor)
        for module, name, value in self.attributes.values():
            setattr(module, name, value)


def absorb_bn_scale_(model: nn.Module, value: float = 1.0) -> Rule:
    """Give every batch norm the scale ``value`` and change all else so that the model computes and learns the same.

    A norm of scale g passes on activations of size g. With scale ``value`` and its bias multiplied by the same
    ``s = value / g``, everything behind it is s times as large: the ``alpha`` of CELU, running statistics and
    ``eps`` of later norms follow, and the last linear layer before the output is divided by s. A parameter that became
    c times as large takes the same course if its learning rate is c**2 times, and its weight decay 1 / c**2 times, what
    it was: the returned rule for ``scrimp.param_groups`` says just that.

    So a trained bias of a norm with scale 1/4 is one that learns 16 times as fast at scale 1. With SGD (momentum,
    Nesterov, weight decay) and s a power of two both networks give the same logits bit by bit. The rule is for SGD:
    the steps of Adam do not grow with the gradient, and would want c and not c**2.

    Args: model - changed in place. value - the new scale.
    Returns: the rule. Called again, it warns and changes nothing.
    Raises: ConfigError - the model cannot be traced; a norm has unequal or non-positive scales; an activation behind a
        norm is of another kind than ReLU, LeakyReLU, PReLU, CELU (GELU and SiLU have no size-free form); branches of
        different scale meet. The model is then unchanged.
    Warns: NoEffectWarning - all scales are ``value`` already, or there are none.
    Cost: two traces; reads every scale (a host sync each).
    Source: D. Page, "How to Train Your ResNet 8: Bag of Tricks", there an argument for larger learning rates of biases.
    """
    if not value > 0:
        raise ConfigError(f"absorb_bn_scale_: value is {value}; a scale has to be positive")
    graph = trace(model)
    if graph is None:
        raise ConfigError("absorb_bn_scale_: torch.fx cannot trace this model, so what follows a norm is not known")
    plan = _Plan()
    factors: dict[fx.Node, float] = {}
    for node in graph.nodes:
        factors[node] = _follow(node, factors, model, value, plan)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    scaled = {names[key]: factor for key, (_, factor) in plan.tensors.items() if key in names and factor != 1}
    plan.commit()
    if not scaled:
        warnings.warn(
            f"absorb_bn_scale_ changed nothing in {type(model).__name__}: no batch norm has another scale than {value}",
            NoEffectWarning,
            stacklevel=2,
        )
    return Rule(
        "as before the scale was absorbed",
        lambda name, _p, _owner: name in scaled,
        lambda name, _p, _owner: {"lr_scale": scaled[name] ** 2, "weight_decay_scale": scaled[name] ** -2},
    )


def _follow(node: fx.Node, factors: Mapping[fx.Node, float], model: nn.Module, value: float, plan: _Plan) -> float:
    """By which factor the result of ``node`` grows; what has to follow is put into ``plan``."""
    incoming = {factors[source] for source in node.all_input_nodes}
    if len(incoming) > 1:
        raise ConfigError(f"absorb_bn_scale_: branches of different scale ({sorted(incoming)}) meet at {node.name}")
    factor = incoming.pop() if incoming else 1.0
    if node.op == "call_module":
        return _follow_module(node, model, factor, value, plan)
    if node.op == "output" and factor != 1:
        raise ConfigError("absorb_bn_scale_: no linear layer stands between the last norm and the output")
    if factor != 1 and not _is_homogeneous(node):
        raise ConfigError(f"absorb_bn_scale_: whether {node.name} keeps proportions is not known")
    return factor


def _is_homogeneous(node: fx.Node) -> bool:
    """Whether a call of a function or method gives c times as much for c times as much; all inputs grow alike."""
    of_nodes = [isinstance(arg, fx.Node | list | tuple) for arg in node.args]
    if node.op == "call_method":
        return node.target in _HOMOGENEOUS_METHODS and of_nodes.count(True) == 1
    if node.target in _SUMS:
        return node.target is torch.cat or all(of_nodes)
    if node.target in _PRODUCTS:
        return of_nodes == [True, False]
    return node.target in _HOMOGENEOUS_FUNCTIONS


def _follow_module(node: fx.Node, model: nn.Module, factor: float, value: float, plan: _Plan) -> float:
    module = model.get_submodule(str(node.target))
    where = f"{node.target!s} ({type(module).__name__})"
    if isinstance(module, _BatchNorm):
        return _follow_norm(module, factor, value, plan, where)
    if isinstance(module, _ConvNd | nn.Linear):
        result = 1.0 if _is_last(node, model) else factor
        plan.multiply(module.weight, result / factor, where)
        plan.multiply(module.bias, result, where)
        return result
    if isinstance(module, nn.CELU):
        plan.multiply_attribute(module, "alpha", factor, where)
    elif factor != 1 and not isinstance(module, _HOMOGENEOUS_MODULES):
        raise ConfigError(
            f"absorb_bn_scale_: {where} has no form that is the same at another scale; only ReLU, LeakyReLU, PReLU and "
            "CELU have. Set the scale before training instead, with freeze_bn_scale_"
        )
    return factor


def _follow_norm(norm: _BatchNorm, factor: float, value: float, plan: _Plan, where: str) -> float:
    plan.multiply(norm.running_mean, factor, where)
    plan.multiply(norm.running_var, factor**2, where)
    plan.multiply_attribute(norm, "eps", factor**2, where)
    if not norm.affine:
        return 1.0
    scale = float(norm.weight.detach()[0])
    if scale <= 0 or bool((norm.weight != scale).any()):
        raise ConfigError(f"absorb_bn_scale_: {where} has unequal or non-positive scales; freeze_bn_scale_ sets them")
    plan.multiply(norm.weight, value / scale, where)
    plan.multiply(norm.bias, value / scale, where)
    return value / scale


def _is_last(node: fx.Node, model: nn.Module) -> bool:
    """Whether something leads from here to the output without another norm or linear layer."""
    users = list(node.users)
    for user in users:
        if user.op == "output":
            return True
        target = model.get_submodule(str(user.target)) if user.op == "call_module" else None
        if not isinstance(target, _BatchNorm | _ConvNd | nn.Linear):
            users.extend(further for further in user.users if further not in users)
    return False
