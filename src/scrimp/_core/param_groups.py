"""One list of rules decides the optimizer options of every parameter."""

import difflib
import functools
import inspect
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from scrimp.errors import ConfigError, NoEffectWarning

Matches = Callable[[str, nn.Parameter, nn.Module], bool]
Options = Mapping[str, Any]

_SCALES = {"lr_scale": "lr", "weight_decay_scale": "weight_decay"}


@dataclass(frozen=True)
class Rule:
    """Options for the parameters that ``matches(name, parameter, owner)`` says yes to.

    ``owner`` is the module that holds the parameter as its attribute. ``options`` are any options of torch's
    optimizers; ``lr_scale`` and ``weight_decay_scale`` multiply the base values. A function of the same three arguments
    gives options that depend on the parameter.

    Example::

        def bias_rule(scale):
            options = {"lr_scale": scale, "weight_decay_scale": 1 / scale}
            return Rule("biases of norms", lambda name, p, owner: "norm" in name and name.endswith("bias"), options)
    """

    name: str
    matches: Matches
    options: Options | Callable[[str, nn.Parameter, nn.Module], Options]


def no_decay_rule(*, embeddings: bool = False) -> Rule:
    """No weight decay for biases and for parameters with at most one dimension (the scales of norms).

    ``embeddings=True`` takes embedding tables in as well. Decaying these regularises nothing and makes norms drift.
    """

    def matches(name: str, parameter: nn.Parameter, owner: nn.Module) -> bool:
        is_table = embeddings and isinstance(owner, nn.Embedding | nn.EmbeddingBag)
        return parameter.dim() <= 1 or name.rpartition(".")[2] == "bias" or is_table

    return Rule("no decay", matches, {"weight_decay": 0.0})


def param_groups(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float = 0.0,
    rules: Sequence[Rule] = (),
    **defaults: Any,
) -> list[dict[str, Any]]:
    """Parameter groups for a torch optimizer: each trainable parameter in one, by the first of ``rules`` that matches.

    Parameters with equal options share a group, whose ``name`` joins the names of their rules (``"default"`` for
    parameters without one); groups come in the order of the rules, the default first, and list ``param_names``. Frozen
    parameters are left out, tied ones belong to their first name. A learning-rate schedule that multiplies keeps
    ``lr_scale``, since each group has its own ``lr``.

    ``defaults`` are further options for all groups (``momentum=0.9``); a rule may override them. Options that torch's
    optimizers do not know are refused, because they would be ignored there; groups are plain dicts to add others to.

    Raises: ConfigError - a learning rate that is not positive, a negative weight decay, an unknown or contradictory
        option, no trainable parameter. Warns: NoEffectWarning - a rule decided for no parameter.
    """
    for given in list[object](rules):
        if not isinstance(given, Rule):
            hint = "; call it: it is the function that makes one" if callable(given) else ""
            raise ConfigError(f"param_groups: {given!r} is not a rule{hint}")
    base = _resolve({}, {"lr": lr, "weight_decay": weight_decay, **defaults}, "param_groups()")
    matched: list[list[tuple[str, nn.Parameter, Options]]] = [[] for _ in range(len(rules) + 1)]
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            owner = model.get_submodule(name.rpartition(".")[0])
            number = next((i for i, rule in enumerate(rules, 1) if rule.matches(name, parameter, owner)), 0)
            options = _options_of(rules[number - 1], name, parameter, owner, base) if number else base
            matched[number].append((name, parameter, options))
    if not any(matched):
        raise ConfigError(
            f"{type(model).__name__} has no parameter with requires_grad=True, so there is nothing to train"
        )
    for rule, members in zip(rules, matched[1:], strict=True):
        if not members:
            warnings.warn(
                f"the rule {rule.name!r} decides for no trainable parameter of {type(model).__name__}; "
                "none matches, or a rule before it takes them",
                NoEffectWarning,
                stacklevel=2,
            )
    return _merge(["default", *(rule.name for rule in rules)], matched)


def _merge(
    names: Sequence[str], matched: Sequence[Sequence[tuple[str, nn.Parameter, Options]]]
) -> list[dict[str, Any]]:
    groups: list[tuple[Options, list[str], dict[str, nn.Parameter]]] = []
    for rule_name, members in zip(names, matched, strict=True):
        for name, parameter, options in members:
            group = next((group for group in groups if group[0] == options), None)
            if group is None:
                group = (options, [], {})
                groups.append(group)
            if rule_name not in group[1]:
                group[1].append(rule_name)
            group[2][name] = parameter
    return [
        {"name": " + ".join(used), "params": list(members.values()), "param_names": list(members), **options}
        for options, used, members in groups
    ]


def _options_of(rule: Rule, name: str, parameter: nn.Parameter, owner: nn.Module, base: Options) -> Options:
    told = rule.options(name, parameter, owner) if callable(rule.options) else rule.options
    return _resolve(base, told, f"the rule {rule.name!r} for {name!r}")


def _resolve(base: Options, told: Options, where: str) -> dict[str, Any]:
    """``base`` with the options of ``told`` over it, scales multiplied out, checked."""
    options = dict(base)
    for option, value in told.items():
        target = _SCALES.get(option) if base else option
        if target is not None and target != option:
            if target in told:
                raise ConfigError(f"{where} gives both {target!r} and {option!r}; give one of them")
            options[target] = base[target] * value
        elif option in _known_options():
            options[option] = value
        else:
            near = difflib.get_close_matches(option, [*_known_options(), *_SCALES], n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {sorted([*_known_options(), *_SCALES])}"
            raise ConfigError(f"{where} gives an unknown option {option!r}; {hint}")
    if not (math.isfinite(options["lr"]) and options["lr"] > 0):
        raise ConfigError(
            f"{where} gives lr = {options['lr']}; it must be positive (freeze with requires_grad_(False))"
        )
    if not (math.isfinite(options["weight_decay"]) and options["weight_decay"] >= 0):
        raise ConfigError(f"{where} gives weight_decay = {options['weight_decay']}; it must not be negative")
    return options


@functools.cache
def _known_options() -> frozenset[str]:
    """The names of the options of all of torch's optimizers."""
    kinds = [kind for kind in vars(torch.optim).values() if inspect.isclass(kind) and issubclass(kind, Optimizer)]
    names = {name for kind in kinds if kind is not Optimizer for name in inspect.signature(kind).parameters}
    return frozenset(names - {"params", "self", "args", "kwargs"})
