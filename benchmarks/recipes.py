"""Claim: each recipe reaches its accuracy in its time, over several seeds.

Every run is ``scrimp train RECIPE`` in a fresh process, as a user would start it; what is kept is its ``summary.json``.
Runs that the result file has already are skipped, so the script can be stopped and started again; remove a run from
the file (or name another --out) to repeat it. A run whose recipe was changed since is repeated.

    python benchmarks/recipes.py --data-root path/to/data
    python benchmarks/recipes.py --recipes digits --seeds 0 1 2 3 4
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from environment import RESULTS, child_environment, facts, hardware_slug, spread, without_home, write_result

RECIPES = ("digits", "fashion-mnist", "cifar10-small", "text")


def main() -> None:
    parser = argparse.ArgumentParser(description="Run recipes over seeds and collect what they reached.")
    parser.add_argument("--recipes", nargs="+", default=RECIPES)
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2))
    parser.add_argument("--data-root", type=Path, help="folder with fashion-mnist/, cifar10/, text/ ($SCRIMP_DATA)")
    parser.add_argument("--threads", type=int, help="CPU threads of a run; left out: as the recipe says")
    parser.add_argument("--flags", nargs=argparse.REMAINDER, default=[], help="further flags of scrimp train, last")
    parser.add_argument("--out", type=Path, help="result file (default: results/recipes_HARDWARE.json)")
    options = parser.parse_args()
    out = options.out or RESULTS / f"recipes_{hardware_slug()}.json"
    runs: list[dict[str, Any]] = json.loads(out.read_text())["runs"] if out.exists() else []
    for seed in options.seeds:  # seeds outside, so that an unfinished file has all recipes
        for recipe in options.recipes:
            flags = [*(["--threads", str(options.threads)] if options.threads else []), *options.flags]
            settings = _settings(recipe, seed, flags)
            same = [run for run in runs if _key(run) == (recipe, seed, settings)]
            if same:
                print(f"{recipe}, seed {seed}: in the file already")
                continue
            run = _run(recipe, seed, flags, settings, options.data_root)
            runs = [old for old in runs if (old["recipe"], old["seed"], old["flags"]) != (recipe, seed, flags)] + [run]
            write_result(out, {"table": _table(runs), "runs": runs})
    for line in _table(runs):
        print(json.dumps(line))


def _key(run: dict[str, Any]) -> tuple[str, int, str]:
    return run["recipe"], run["seed"], run["settings"]


def _settings(recipe: str, seed: int, flags: list[str]) -> str:
    """A digest of everything that the run is told."""
    from scrimp.train.recipes import find_recipe

    told = [find_recipe(recipe).to_dict(), seed, flags]
    return hashlib.blake2b(json.dumps(told, sort_keys=True).encode(), digest_size=8).hexdigest()


def _run(recipe: str, seed: int, flags: list[str], settings: str, data_root: Path | None) -> dict[str, Any]:
    environment = child_environment()
    if data_root is not None:
        environment["SCRIMP_DATA"] = str(data_root.resolve())
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        words = ["train", recipe, "--seed", str(seed), *flags]
        print(f"scrimp {' '.join(words)} ...", flush=True)
        load, started = os.getloadavg()[0], time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "scrimp", *words, "--out", str(run_dir)],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        command_seconds = time.perf_counter() - started
        if done.returncode:
            raise SystemExit(f"exit code {done.returncode}:\n{done.stdout}\n{done.stderr}")
        summary = json.loads((run_dir / "summary.json").read_text())
    reached = summary["test_accuracy"] if summary["test_accuracy"] is not None else summary["test_loss_nats"]
    print(f"  {reached:.4f} in {summary['train_seconds']:.1f} s (whole command {command_seconds:.1f} s)", flush=True)
    return {
        "recipe": recipe, "seed": seed, "flags": flags, "settings": settings, "command_seconds": command_seconds,
        "load_average_before": load, "load_average_after": os.getloadavg()[0],
        "run": f"scrimp {' '.join(map(without_home, words))}", "facts": facts(summary["threads"]), "summary": summary,
    }  # fmt: skip


def _table(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One line per recipe and flags, over its seeds."""
    lines = []
    for recipe, flags in dict.fromkeys((run["recipe"], tuple(run["flags"])) for run in runs):
        of_recipe = [run for run in runs if (run["recipe"], tuple(run["flags"])) == (recipe, flags)]
        line: dict[str, Any] = {"recipe": recipe, "flags": list(flags), "seeds": [run["seed"] for run in of_recipe]}
        for key in ("test_accuracy", "test_loss_nats", "train_seconds", "peak_memory_bytes"):
            values = [run["summary"][key] for run in of_recipe if run["summary"][key] is not None]
            if values:
                line[key] = spread(values)
        line["command_seconds"] = spread([run["command_seconds"] for run in of_recipe])
        lines.append(line)
    return lines


if __name__ == "__main__":
    main()
