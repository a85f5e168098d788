"""How near ``--target-bytes`` lands: the size of the packed file against the size that was asked for, over seeds.

Each run is a run directory; finished ones are read and unfinished ones go on. The result is written after every run.

    python benchmarks/bits_target.py --targets 6000 15000
    python benchmarks/bits_target.py --recipe fashion-mnist --data path/to/fashion-mnist --targets 12000 \\
        --set model='"small-cnn"' 'model_args={"width": 8}' num_epochs=5
"""

import argparse
import json
from pathlib import Path
from typing import Any

from bits_curve import finish
from environment import RESULTS, facts, write_result

from scrimp.train.recipes import find_recipe
from scrimp.train.variants import with_savings


def main() -> None:
    parser = argparse.ArgumentParser(description="Sizes of files against the target sizes.")
    parser.add_argument("--recipe", default="digits")
    parser.add_argument("--data", help="where its data is, if not where the recipe says")
    parser.add_argument("--targets", type=int, nargs="+", default=[6000, 15000])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=JSON", help="other settings of the recipe")
    parser.add_argument("--runs", type=Path, default=Path("runs/bits_target"), help="folder of the run directories")
    parser.add_argument("--out", type=Path, help="default: results/bits_target_RECIPE.json")
    options = parser.parse_args()
    changes = {name: json.loads(value) for name, value in (one.split("=", 1) for one in options.set)}
    if options.data:
        changes["data"] = options.data
    config = with_savings(find_recipe(options.recipe), ()).replace(**changes, compress=True)
    runs: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        for target in options.targets:
            out = options.runs / options.recipe / f"{target}-bytes" / f"seed-{seed}"
            out.parent.mkdir(parents=True, exist_ok=True)
            summary = finish(config.replace(seed=seed, target_bytes=target), out)
            assert summary.model_packed_bytes is not None
            off = summary.model_packed_bytes / target - 1
            runs.append(
                {
                    "target_bytes": target, "seed": seed, "packed_bytes": summary.model_packed_bytes, "off": off,
                    "test_accuracy": summary.test_accuracy, "weights_kept_fraction": summary.weights_kept_fraction,
                    "float32_bytes": summary.model_float32_bytes,
                }
            )  # fmt: skip
            print(f"{target:,} bytes, seed {seed}: {summary.model_packed_bytes:,} ({100 * off:+.2f} %)", flush=True)
            result = {"recipe": options.recipe, "settings": changes, "runs": runs}
            result["largest_off"] = max(abs(one["off"]) for one in runs)
            write_result(
                options.out or RESULTS / f"bits_target_{options.recipe}.json",
                {**facts(threads=config.threads), **result},
            )


if __name__ == "__main__":
    main()
