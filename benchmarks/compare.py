"""Claim: one run with all four savings reaches what plain training does, and spends a fraction of it.

``scrimp compare`` in a fresh process, as a user would start it; what is kept is its ``comparison.json``, the hardware,
and how long the whole command took. A directory given by --runs keeps the runs, so that the script can be stopped and
started again, and seeds or variants added; the seconds are then those of the last go alone.

    python benchmarks/compare.py                                             # digits, all variants, two seeds
    python benchmarks/compare.py --recipe fashion-mnist --seeds 3 --flags --num-epochs 5 --checkpoint-every 0.05
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from environment import RESULTS, child_environment, facts, without_home, write_result

from scrimp.report.comparison_table import ratio_text
from scrimp.report.units import format_bytes, format_count, format_percent, format_seconds

# of the table in the README: measure, heading, how it is written
COLUMNS = (
    ("test_accuracy", "accuracy", format_percent), ("sample_visits", "samples visited", format_count),
    ("num_steps", "steps", format_count), ("cpu_seconds", "processor time", format_seconds),
    ("model_bytes", "model", format_bytes), ("checkpoint_bytes", "checkpoints on disk", format_bytes),
)  # fmt: skip


def short_table(comparison: Mapping[str, Any]) -> list[str]:
    """The table of the README, as lines of Markdown."""
    has_accuracy = "test_accuracy" in comparison["variants"][0]
    columns = COLUMNS if has_accuracy else (("test_loss_nats", "nats", "{:.4f}".format), *COLUMNS[1:])
    lines = [f"| | {' | '.join(label for _, label, _ in columns)} |", f"|---|{'---:|' * len(columns)}"]
    for variant in comparison["variants"]:
        cells = []
        for key, _, show in columns:
            cell = variant[key]
            ratio = "" if cell["ratio"] is None or abs(cell["ratio"] - 1) < 0.005 else f" ({ratio_text(cell['ratio'])})"
            cells.append(f"{show(cell['mean'])}{ratio if variant['name'] != 'plain' else ''}")
        lines.append(f"| {variant['name']} | {' | '.join(cells)} |")
    return lines


def scrimp(words: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", "scrimp", *words], env=child_environment(), check=False)
    if done.returncode:
        raise SystemExit(f"scrimp compare ended with exit code {done.returncode}")


def main() -> None:
    parser = argparse.ArgumentParser(description="scrimp compare, with its result kept.")
    parser.add_argument("--recipe", default="digits")
    parser.add_argument("--variants", nargs="+")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--jobs", type=int)
    parser.add_argument("--runs", type=Path, help="keep the runs here, and go on with those that are there")
    parser.add_argument("--out", type=Path, help="result file (default: results/compare_RECIPE.json)")
    parser.add_argument("--flags", nargs=argparse.REMAINDER, default=[], help="flags of scrimp train, last")
    options = parser.parse_args()
    out = options.out or RESULTS / f"compare_{options.recipe.replace('-', '_')}.json"
    with tempfile.TemporaryDirectory() as folder:
        runs = options.runs or Path(folder) / "runs"
        words = ["compare", options.recipe, "--seeds", str(options.seeds), "--out", str(runs), *options.flags]
        words += ["--variants", *options.variants] if options.variants else []
        words += ["--jobs", str(options.jobs)] if options.jobs else []
        started = time.perf_counter()
        scrimp(words)
        seconds = time.perf_counter() - started
        comparison = json.loads((runs / "comparison.json").read_text())
    comparison["command"] = " ".join(["scrimp", *map(without_home, words[: words.index("--out")]), *options.flags])
    for line in short_table(comparison):
        print(line)
    write_result(out, {**facts(), "command_seconds": round(seconds, 1), "comparison": comparison})


if __name__ == "__main__":
    main()
