"""The plan of a comparison: plain training, its control, each saving alone and all together, as configurations."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from scrimp._core.atomic_files import write_json
from scrimp._core.names import nearest
from scrimp._core.rng import generator
from scrimp.errors import ConfigError
from scrimp.report.comparison import PLAIN, PLAN_NAME, run_name
from scrimp.report.record import CONFIG_NAME, SUMMARY_NAME
from scrimp.samples import Budget, DynamicRandom, SamplePruner
from scrimp.train.config import TrainConfig
from scrimp.train.pruning import rule_of, with_rule_named
from scrimp.train.recipes import find_recipe
from scrimp.train.run_dir import read_config
from scrimp.train.variants import SAVINGS, savings_of, with_savings

ALL = "all"
SHORTENED = "shortened"
_GAMMAS = (3e-3, 1.0)  # between which a sweep draws
_COUNTED = 10**6  # samples of a stand-in, to count visits without the data


@dataclass(frozen=True)
class PlannedVariant:
    """A way to train: its name, what it is in words, a configuration, and in what that differs from plain training."""

    name: str
    meaning: str
    config: TrainConfig
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class PlannedRun:
    """One run of a comparison."""

    variant: str
    config: TrainConfig
    run_dir: Path

    @property
    def is_finished(self) -> bool:
        """Whether its summary is there; such a run is read and not repeated."""
        return (self.run_dir / SUMMARY_NAME).exists()

    @property
    def is_begun(self) -> bool:
        """Whether there is something to go on with."""
        return (self.run_dir / CONFIG_NAME).exists()


def default_variants(recipe: str) -> tuple[str, ...]:
    """Plain training, the same on a schedule shortened to as many visits as pruning makes, each saving, and all."""
    names = savings_of(recipe).names()
    return (PLAIN, *([SHORTENED] if "samples" in names else []), *names, ALL)


def plan_variants(
    recipe: str,
    names: Sequence[str],
    change: Callable[[TrainConfig], TrainConfig] = lambda config: config,
    gammas: Sequence[float] = (),
) -> tuple[PlannedVariant, ...]:
    """The variants called ``names``, each with ``change`` made to it (the flags of a command line).

    A name is ``plain``, ``shortened``, ``all``, a saving, or savings joined by ``+``. With ``gammas``, each variant
    that compresses stands there once for each of them.

    Raises: ConfigError - an unknown name, a saving that the recipe does not have, or settings that contradict others.
    """
    planned, plain = [], change(_config_of(recipe, PLAIN))
    for name in dict.fromkeys(names):
        config = change(_config_of(recipe, name))
        if name == SHORTENED:
            config = _shortened(config, change(_config_of(recipe, "samples")))
        if gammas and config.compress:
            planned += [_variant(f"{name}-gamma-{g:.12g}", config.replace(gamma=g), plain) for g in gammas]
        else:
            planned.append(_variant(name, config, plain))
    return tuple(planned)


def draw_gammas(num: int, seed: int = 0) -> tuple[float, ...]:
    """``num`` weights of the size in the loss, ascending, each drawn evenly from its share of a logarithmic range."""
    low, high = _GAMMAS
    places = (torch.arange(num) + torch.rand(num, generator=generator(seed, "gammas"))) / num
    return tuple(float(f"{low * (high / low) ** place:.2g}") for place in places.tolist())


def runs_of(variants: Sequence[PlannedVariant], seeds: Sequence[int], directory: Path) -> tuple[PlannedRun, ...]:
    """Every run in the order to make them: seed by seed, so that a stop leaves complete pairs."""
    return tuple(
        PlannedRun(variant.name, variant.config.replace(seed=seed), directory / run_name(variant.name, seed))
        for seed in seeds
        for variant in variants
    )


def refuse_other_runs(runs: Sequence[PlannedRun]) -> None:
    """Raise ConfigError when a run is there that was begun with other settings than are planned."""
    for run in runs:
        if run.is_begun and (differences := read_config(run.run_dir).differences(with_rule_named(run.config))):
            raise ConfigError(
                f"{run.run_dir} was begun with other settings ({differences[0]}): by another version, or other flags; "
                "choose another --out"
            )


def write_plan(
    directory: Path,
    recipe: str,
    variants: Sequence[PlannedVariant],
    seeds: Sequence[int],
    *,
    command: str,
    num_at_once: int,
    given: Mapping[str, Any],
) -> None:
    """Write down what is compared. ``given`` are the settings of the command line, to go on with them."""
    plan = {
        "recipe": recipe, "seeds": list(seeds), "command": command, "num_at_once": num_at_once, "given": dict(given),
        "variants": [{"name": one.name, "meaning": one.meaning, "settings": one.settings} for one in variants],
    }  # fmt: skip
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / PLAN_NAME, plan)


def _config_of(recipe: str, name: str) -> TrainConfig:
    if name in (PLAIN, SHORTENED):
        return with_savings(find_recipe(recipe), ())
    if name == ALL:
        return with_savings(find_recipe(recipe), savings_of(recipe).names())
    parts = name.split("+")
    if unknown := [part for part in parts if part not in SAVINGS]:
        known = [PLAIN, SHORTENED, *SAVINGS, ALL]
        raise ConfigError(f"no variant is called {unknown[0]!r}{nearest(unknown[0], known)}; join savings by +")
    return with_savings(find_recipe(recipe), parts)


def _shortened(plain: TrainConfig, pruned: TrainConfig) -> TrainConfig:
    """``plain`` for as many epochs as have the visits of ``pruned``."""
    rule = rule_of(pruned)
    if not isinstance(rule, Budget | DynamicRandom):
        raise ConfigError("the visits of a rule without a budget are not known before; leave the variant shortened out")
    pruner = SamplePruner(_COUNTED, pruned.num_epochs, rule, num_full_first=1)  # as runs do
    return plain.replace(num_epochs=round(pruner.total_steps(1) / _COUNTED, 3))


def _variant(name: str, config: TrainConfig, plain: TrainConfig) -> PlannedVariant:
    theirs = plain.to_dict()
    settings = {key: value for key, value in config.to_dict().items() if value != theirs[key]}
    if config.compress and not plain.compress:  # what decides the size is told also where it is the default
        weight = {"gamma": config.gamma} if config.target_bytes is None else {"target_bytes": config.target_bytes}
        settings = {key: value for key, value in settings.items() if key != "gamma"} | weight
    if name == PLAIN:
        meaning = "the same network, data and epochs, nothing saved"
    elif name == SHORTENED:
        meaning = f"plain training for {config.num_epochs:.3g} epochs: as many visits as with pruning"
    else:
        meaning = ", ".join(f"{key.replace('_', ' ')} {_shown(value)}" for key, value in settings.items())
    return PlannedVariant(name, meaning, config, settings)


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)
