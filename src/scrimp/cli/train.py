"""``scrimp train``."""

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
import torch.distributed

from scrimp._core.ranks import is_main
from scrimp.cli.allocator import keep_large_blocks
from scrimp.cli.display import open_display
from scrimp.cli.flags import add_config_flags, apply_flags, given_flags, parse
from scrimp.cli.main import EXIT_DONE, EXIT_INTERRUPTED, Parser
from scrimp.cli.stopping import on_stop
from scrimp.errors import ConfigError
from scrimp.report.record import RunStatus
from scrimp.train.config import TrainConfig
from scrimp.train.parallel import local_rank
from scrimp.train.pruning import is_too_short
from scrimp.train.recipes import RECIPES, find_recipe
from scrimp.train.run import Started, run
from scrimp.train.run_dir import newest_unfinished, read_config
from scrimp.train.variants import SAMPLE_SETTINGS, SAVINGS, parse_savings, with_savings

_DEFAULT_RECIPE = "digits"


def train_command(words: Sequence[str]) -> int:
    """Train one run as the command line says; returns the exit code."""
    namespace = parse(_parser(TrainConfig()), list(words))
    name = namespace.recipe or _DEFAULT_RECIPE
    if namespace.help:
        _parser(find_recipe(name, namespace.rung)).print_help()
        return EXIT_DONE
    config, out = _configure(namespace)
    sys.path.insert(0, os.getcwd())  # so that --model finds a module beside the user  # noqa: PTH109
    keep_large_blocks()
    stop = _Stop()
    with _processes(config), on_stop(stop.handle), open_display(config) as display:
        started_in: list[Path] = []

        def begin(started: Started) -> None:
            started_in.append(started.run_dir)
            stop.arm()
            display.on_start(started)

        try:
            ended = run(
                config,
                out=out,
                resume=namespace.resume,
                on_data=display.on_data,
                on_start=begin,
                on_step=display.on_step,
                should_stop=stop.asked,
            )
        except OSError:
            if started_in and is_main():
                print("what was saved before is intact; once the cause is mended, go on with", file=sys.stderr)
                print(f"scrimp train --resume --out {shlex.quote(str(started_in[0]))}", file=sys.stderr)
            raise
        display.on_end(ended)
    return EXIT_INTERRUPTED if ended.status is RunStatus.INTERRUPTED else EXIT_DONE


def _configure(namespace: argparse.Namespace) -> tuple[TrainConfig, Path | None]:
    """The configuration and directory: the recipe with the flags given, or that of the run which is resumed."""
    if not namespace.resume:
        recipe = find_recipe(namespace.recipe or _DEFAULT_RECIPE, namespace.rung)
        if namespace.savings is not None:
            recipe = with_savings(recipe, parse_savings(namespace.savings, recipe.recipe))
        config = apply_flags(namespace, recipe)
        was_asked = namespace.savings is not None or not given_flags(namespace).keys().isdisjoint(SAMPLE_SETTINGS)
        if not was_asked and is_too_short(config):
            if os.environ.get("RANK", "0") == "0":
                print(
                    f"{config.num_epochs:g} epochs are too few to leave samples out; each visits all", file=sys.stderr
                )
            config = config.replace(**dict.fromkeys(("prune_ratio", "keep")), sample_rule="none")
        return config, namespace.out
    out = namespace.out or newest_unfinished(namespace.recipe)
    stored = read_config(out)
    for flag in ("rung", "savings"):
        if getattr(namespace, flag) is not None:
            raise ConfigError(f"a run goes on with its own settings; leave --{flag} out with --resume")
    if namespace.recipe not in (None, stored.recipe):
        raise ConfigError(f"{out} holds a run of {stored.recipe!r}, not of {namespace.recipe!r}; leave the recipe out")
    return apply_flags(namespace, stored), out


def _parser(defaults: TrainConfig) -> Parser:
    recipes = "\n".join(f"  {name:15} {_first_sentence(function.__doc__)}" for name, function in RECIPES.items())
    parser = Parser(
        prog="scrimp train",
        usage="scrimp train [RECIPE] [--data NAME|PATH] [--model NAME|MODULE:FUNCTION] [--out DIR] [--resume] ...",
        description="Train a model as a recipe says; every setting of the recipe can be changed by a flag.\n\n"
        f"recipes:\n{recipes}",
        epilog="examples:\n"
        "  scrimp train                                       handwritten digits, nothing to download\n"
        "  scrimp train fashion-mnist --data path/to/folder   IDX, parquet, CIFAR or class folders\n"
        "  scrimp train cifar10-small --num-epochs 3 --seed 1\n"
        "  scrimp train fashion-mnist --savings all           or none, or samples,bits\n"
        "  scrimp train cifar10-small --model my_module:make_model --model-args depth=20\n"
        "  scrimp train --resume                              go on with the newest unfinished run\n"
        "  torchrun --nproc-per-node 2 -m scrimp train digits --batch-size 32",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
        allow_abbrev=False,
    )
    parser.add_argument("recipe", nargs="?", metavar="RECIPE", help="see above (default: digits)")
    parser.add_argument("--rung", type=int, metavar="N", help="cifar10-page: rung of its ladder, from 0 (the baseline)")
    parser.add_argument(
        "--savings",
        metavar="all|none|NAMES",
        help=f"of {','.join(SAVINGS)}: those which to use (default: the recipe's)",
    )
    run_group = parser.add_argument_group("where")
    run_group.add_argument("--out", type=Path, metavar="DIR", help="directory of the run (default: runs/RECIPE-NNN)")
    run_group.add_argument(
        "--resume", action="store_true", help="go on with the interrupted run in --out, or with the newest one"
    )
    run_group.add_argument(
        "-h", "--help", action="store_true", help="show this; `scrimp train RECIPE --help` shows that recipe's settings"
    )
    add_config_flags(parser, defaults)
    return parser


def _first_sentence(text: str | None) -> str:
    return (text or "").split("\n")[0].rstrip(".")


@contextmanager
def _processes(config: TrainConfig) -> Iterator[None]:
    """Join the other processes when torchrun started several."""
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        yield
        return
    on_cuda = config.device.startswith("cuda") or (config.device == "auto" and torch.cuda.is_available())
    if on_cuda:
        torch.cuda.set_device(local_rank())
    torch.distributed.init_process_group("nccl" if on_cuda else "gloo")
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


class _Stop:
    """A signal to stop, during training, asks the loop to save and stop; a second Ctrl-C stops at once.

    A second SIGTERM does not: torchrun passes Ctrl-C on as one, behind the Ctrl-C that the terminal sends to all.
    """

    def __init__(self) -> None:
        self._armed = self._asked = False

    def arm(self) -> None:
        """From now on the loop is listening."""
        self._armed = True

    def asked(self) -> bool:
        return self._asked

    def handle(self, number: int) -> None:
        if not self._armed or (self._asked and number == signal.SIGINT):
            raise KeyboardInterrupt
        if is_main() and not self._asked:
            with suppress(OSError):  # the terminal may be gone
                print("\nstopping after this step, to save it (again to stop at once) ...", file=sys.stderr)
        self._asked = True
