"""``scrimp compare``."""

import argparse
import json
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from scrimp.cli.compare_display import open_progress
from scrimp.cli.flags import add_config_flags, apply_flags, given_flags, parse
from scrimp.cli.main import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, Parser
from scrimp.cli.output import output_may_vanish
from scrimp.cli.run_pool import Failure, carry_out
from scrimp.cli.stopping import on_stop
from scrimp.cli.tables import show_comparison
from scrimp.errors import ConfigError, FormatError
from scrimp.report.comparison import PLAN_NAME, read_comparison
from scrimp.report.comparison_files import write_comparison
from scrimp.train.comparison import (
    ALL,
    SHORTENED,
    PlannedVariant,
    default_variants,
    draw_gammas,
    plan_variants,
    refuse_other_runs,
    runs_of,
    write_plan,
)
from scrimp.train.config import TrainConfig
from scrimp.train.pruning import rule_of
from scrimp.train.recipes import find_recipe
from scrimp.train.run_dir import next_free
from scrimp.train.variants import BIT_SETTINGS, SAMPLE_SETTINGS, SAVINGS

_DEFAULT_RECIPE = "digits"
_NUM_SEEDS = 2
_NUM_GAMMAS = 6
_MOST_NAMED = 3  # of runs that failed alike


def compare_command(words: Sequence[str]) -> int:
    """Make the runs of a comparison that are not there yet, and show its table; returns the exit code."""
    if "--resume" in words:
        raise ConfigError("a comparison that is named goes on, without --resume: scrimp compare --out DIR")
    namespace = parse(_parser(TrainConfig()), list(words))
    if namespace.help:
        _parser(find_recipe(namespace.recipe or _DEFAULT_RECIPE)).print_help()
        return EXIT_DONE
    _refuse_torchrun()
    plan = _stored_plan(namespace.out)
    recipe, given = _recipe_and_flags(namespace, plan)
    variants = _variants(namespace, recipe, given, plan)
    first = int(given.get("seed", 0))
    num_seeds = max(namespace.seeds or (0 if plan else _NUM_SEEDS), len(plan.get("seeds", [])))
    seeds = range(first, first + num_seeds)
    num_at_once = namespace.jobs or _room_for(variants[0].config)
    directory = namespace.out or next_free(f"compare-{recipe}")
    command = shlex.join(["scrimp", "compare", *(words or [recipe])]) if not plan else plan["command"]
    refuse_other_runs(runs_of(variants, seeds, directory))
    write_plan(directory, recipe, variants, seeds, command=command, num_at_once=num_at_once, given=given)
    if num_at_once > 1:
        threads = max(1, (os.cpu_count() or 1) // num_at_once)
        variants = tuple(
            PlannedVariant(v.name, v.meaning, v.config.replace(threads=v.config.threads or threads), v.settings)
            for v in variants
        )
    runs = runs_of(variants, seeds, directory)
    try:
        with on_stop(_interrupt), open_progress(runs, num_at_once) as progress:
            failures = carry_out(runs, num_at_once, progress)
    except KeyboardInterrupt:
        with output_may_vanish():
            print(f"interrupted; go on with: scrimp compare --out {shlex.quote(str(directory))}", flush=True)
        return EXIT_INTERRUPTED
    comparison = read_comparison(directory)
    files = write_comparison(comparison) if comparison.finished() else []
    with output_may_vanish():
        show_comparison(comparison)
        for path in files:
            print(path)
        sys.stdout.flush()
    for message, alike in _by_message(failures).items():
        names = ", ".join(failure.run.run_dir.name for failure in alike[:_MOST_NAMED])
        others = f" and {len(alike) - _MOST_NAMED} more" if len(alike) > _MOST_NAMED else ""
        print(f"{names}{others} failed: {message} (all it said: {alike[0].log})", file=sys.stderr)
    return EXIT_FAILED if failures else EXIT_DONE


def _by_message(failures: Sequence[Failure]) -> dict[str, list[Failure]]:
    """Failures by what they say, in the order of the first of each."""
    found: dict[str, list[Failure]] = {}
    for failure in failures:
        found.setdefault(failure.message, []).append(failure)
    return found


def _parser(defaults: TrainConfig) -> Parser:
    parser = Parser(
        prog="scrimp compare",
        usage="scrimp compare [RECIPE] [--variants NAME...] [--seeds N] [--jobs N] [--out DIR] ...",
        description="Train a recipe plainly, with each saving alone and with all of them, over the same seeds, and "
        "show what each saved and what it cost.\n\n"
        "variants: plain, shortened (plain for as many visits as pruning makes), "
        f"{', '.join(SAVINGS)}, all, or savings joined by +.",
        epilog="Flags of `scrimp train` are passed on to all variants; those of samples and bits to the variants that "
        "have that saving.\n\nexamples:\n"
        "  scrimp compare digits --seeds 3\n"
        "  scrimp compare fashion-mnist --variants plain all samples+bits --num-epochs 3\n"
        "  scrimp compare digits --sweep gamma                size against accuracy\n"
        "  scrimp compare --out runs/compare-digits-001       go on; --seeds or --variants may add to it",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
        allow_abbrev=False,
    )
    parser.add_argument("recipe", nargs="?", metavar="RECIPE", help="a recipe of scrimp train (default: digits)")
    group = parser.add_argument_group("comparison")
    group.add_argument("--variants", nargs="+", metavar="NAME", help="what to compare (default: all that there are)")
    group.add_argument("--seeds", type=_positive, metavar="N", help="runs of each variant, from --seed on (default: 2)")
    group.add_argument("--jobs", type=_positive, metavar="N", help="runs at a time (default: as many as cores allow)")
    group.add_argument("--sweep", choices=["gamma"], metavar="gamma", help="plain, and bits with several gammas")
    group.add_argument("--gammas", nargs="+", type=float, metavar="X", help="those of the sweep (default: 6 drawn)")
    group.add_argument("--out", type=Path, metavar="DIR", help="directory (default: runs/compare-RECIPE-NNN)")
    group.add_argument("-h", "--help", action="store_true", help="show this")
    add_config_flags(parser, defaults)
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number


def _stored_plan(directory: Path | None) -> dict[str, Any]:
    """The plan of the comparison that ``directory`` holds; empty if it holds none."""
    if directory is None or not (directory / PLAN_NAME).exists():
        if directory is not None and directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise ConfigError(f"{directory} exists and holds no comparison; choose another --out")
        return {}
    try:
        plan = json.loads((directory / PLAN_NAME).read_text(encoding="utf-8"))
    except ValueError as error:
        raise FormatError(f"{directory / PLAN_NAME} is damaged ({error})") from error
    if not isinstance(plan, dict) or not {"recipe", "given", "variants", "seeds", "command"} <= plan.keys():
        raise FormatError(f"{directory / PLAN_NAME} is damaged: it is no plan of scrimp compare")
    return plan


def _recipe_and_flags(namespace: argparse.Namespace, plan: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The recipe and the settings given; those of the plan when a comparison goes on."""
    given = given_flags(namespace)
    if not plan:
        return namespace.recipe or _DEFAULT_RECIPE, given
    if namespace.recipe not in (None, plan["recipe"]):
        raise ConfigError(
            f"{namespace.out} compares {plan['recipe']!r}, not {namespace.recipe!r}; leave the recipe out"
        )
    if given and given != plan["given"]:
        raise ConfigError(
            f"{namespace.out} was begun with other settings; leave the flags of training out to go on with it, or "
            "choose another --out"
        )
    return str(plan["recipe"]), dict(plan["given"])


def _variants(
    namespace: argparse.Namespace, recipe: str, given: dict[str, Any], plan: dict[str, Any]
) -> tuple[PlannedVariant, ...]:
    def change(config: TrainConfig) -> TrainConfig:
        if config.compress and given.get("compress") is False:
            raise ConfigError("--no-compress takes the bits out of a variant that is about them; see --variants")
        others = [] if config.compress else [*BIT_SETTINGS]
        others += [] if rule_of(config) is not None else SAMPLE_SETTINGS
        mine = {name: value for name, value in given.items() if name not in others}
        return apply_flags(argparse.Namespace(**mine), config)

    find_recipe(recipe)
    if namespace.gammas and not namespace.sweep:
        raise ConfigError("--gammas is for --sweep gamma")
    stored = [_stored_variant(one, recipe, change) for one in plan.get("variants", [])]
    gammas: tuple[float, ...] = ()
    if namespace.sweep:
        gammas = tuple(namespace.gammas or draw_gammas(_NUM_GAMMAS))
        for name in ("gamma", "target_bytes"):
            if given.get(name) is not None:
                raise ConfigError(f"--{name.replace('_', '-')} and --sweep gamma do not go together")
    names = namespace.variants or (("plain", "bits") if gammas else () if stored else default_variants(recipe))
    if not plan:
        _refuse_flags_without_use(given, names)
    new = plan_variants(recipe, names, change, gammas)
    return tuple({variant.name: variant for variant in (*stored, *new)}.values())


def _refuse_flags_without_use(given: dict[str, Any], names: Sequence[str]) -> None:
    """Raise ConfigError when a flag of a saving was given and no variant has that saving."""
    parts = {part for name in names for part in name.split("+")}
    uses = {"bits": (BIT_SETTINGS, {"bits"}), "samples": (SAMPLE_SETTINGS, {"samples", SHORTENED})}
    for saving, (settings, users) in uses.items():
        for name in settings:
            if given.get(name) not in (None, False) and not parts & {*users, ALL}:
                raise ConfigError(f"--{name.replace('_', '-')} is for {saving}, which no variant has; see --variants")


def _stored_variant(stored: dict[str, Any], recipe: str, change: Any) -> PlannedVariant:
    name, _, gamma = stored["name"].partition("-gamma-")
    (variant,) = plan_variants(recipe, [name], change, (float(gamma),) if gamma else ())
    return variant


def _room_for(config: TrainConfig) -> int:
    """How many runs to make at a time: as many as have their threads to themselves, and one on a GPU."""
    is_on_cpu = config.device == "cpu" or (config.device == "auto" and not torch.cuda.is_available())
    if not is_on_cpu or config.threads is None:
        return 1
    return max(1, (os.cpu_count() or 1) // config.threads)


def _refuse_torchrun() -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("scrimp compare starts its runs by itself; start it without torchrun")


def _interrupt(_number: int) -> None:
    """As Ctrl-C does. From then on only another Ctrl-C is heard: shells send SIGHUP twice when a terminal is closed."""
    for other in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(other, signal.SIG_IGN)
    raise KeyboardInterrupt
