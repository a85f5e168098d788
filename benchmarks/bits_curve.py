"""Size against accuracy: a recipe trained plainly and with ``--compress`` at several gammas, over seeds.

Each run is a run directory like any other; finished ones are read and unfinished ones go on, so the script can be
stopped and started again; the result is written after every point. The sizes are those of the files; the plain run is
the recipe with the same epochs.

    python benchmarks/bits_curve.py --recipe fashion-mnist --data path/to/fashion-mnist --seeds 3
    python benchmarks/bits_curve.py --recipe cifar10-page --rung 3 --data path/to/cifar10 --seeds 1 \
        --set 'model_args={"width": 16}' num_epochs=8 batch_size=256 learning_rate=0.3
    # for a GPU
    python benchmarks/bits_curve.py --recipe cifar10-page --rung 3 --name cifar10-resnet20 --data path/to/cifar10 \
        --seeds 1 --set 'model="resnet20"' 'model_args={}' num_epochs=60 batch_size=128 learning_rate=0.2 cutout=0
"""

import argparse
import json
from pathlib import Path
from statistics import mean
from typing import Any

from environment import RESULTS, facts, spread, write_result

from scrimp.bits import inspect_packed
from scrimp.report.summary import Summary
from scrimp.train.config import TrainConfig
from scrimp.train.outcome import PACKED_NAME
from scrimp.train.recipes import find_recipe
from scrimp.train.run import run
from scrimp.train.variants import with_savings

GAMMAS = (0.003, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8)


def finish(config: TrainConfig, out: Path) -> Summary:
    """The summary of a run that is done by now."""
    done = run(config, out=out, resume=(out / "config.json").exists())
    assert done.summary is not None
    return done.summary


def with_mean(values: list[float]) -> dict[str, float]:
    """The spread of values and their mean."""
    return {**spread(values), "mean": round(mean(values), 6)}


def point(summaries: list[Summary], code_bytes: list[int]) -> dict[str, Any]:
    """What the seeds of one setting came to. ``code_bytes``: what the codes alone take of each packed file."""
    result: dict[str, Any] = {
        "train_seconds": spread([one.train_seconds for one in summaries]),
        "cpu_seconds": spread([one.cpu_seconds for one in summaries if one.cpu_seconds is not None]),
        "weights_kept_fraction": spread([one.weights_kept_fraction for one in summaries]),
        "float32_bytes": summaries[0].model_float32_bytes,
    }
    packed = [one.model_packed_bytes for one in summaries if one.model_packed_bytes is not None]
    if packed:
        result["packed_bytes"] = spread([float(size) for size in packed])
        result["fraction_of_float32"] = spread([size / summaries[0].model_float32_bytes for size in packed])
        # the weights' bits alone, as the paper counts
        result["codes_of_float32"] = with_mean([size / summaries[0].model_float32_bytes for size in code_bytes])
    accuracies = [one.test_accuracy for one in summaries if one.test_accuracy is not None]
    losses = [one.test_loss_nats for one in summaries if one.test_loss_nats is not None]
    quality = {"test_accuracy": with_mean(accuracies)} if accuracies else {}
    return {**result, "test_loss_nats": with_mean(losses), **quality}


def main() -> None:
    parser = argparse.ArgumentParser(description="Accuracy and bytes of a recipe over gamma.")
    parser.add_argument("--recipe", default="fashion-mnist")
    parser.add_argument("--rung", type=int, help="of the ladder of cifar10-page")
    parser.add_argument("--name", help="of the folder of the runs and of the result; default: the recipe's")
    parser.add_argument("--data", help="where its data is, if not where the recipe says")
    parser.add_argument("--gammas", type=float, nargs="+", default=list(GAMMAS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=JSON", help="other settings of the recipe")
    parser.add_argument("--runs", type=Path, default=Path("runs/bits_curve"), help="folder of the run directories")
    parser.add_argument("--out", type=Path, help="default: results/bits_curve_NAME.json")
    options = parser.parse_args()
    changes = {name: json.loads(value) for name, value in (one.split("=", 1) for one in options.set)}
    if options.data:
        changes["data"] = options.data
    recipe = find_recipe(options.recipe, options.rung)
    # a rung has no savings to be without
    config = (recipe if options.rung is not None else with_savings(recipe, ())).replace(**changes)
    name = options.name or options.recipe
    out_file = options.out or RESULTS / f"bits_curve_{name}.json"
    points = []
    for gamma in (None, *options.gammas):
        more = {"quantizer": TrainConfig().quantizer} if gamma is None else {"compress": True, "gamma": gamma}
        summaries, code_bytes = [], []
        for seed in range(options.seeds):
            out = options.runs / name / ("plain" if gamma is None else f"gamma-{gamma:g}") / f"seed-{seed}"
            out.parent.mkdir(parents=True, exist_ok=True)
            summaries.append(finish(config.replace(seed=seed, **more), out))
            if gamma is not None:
                code_bytes.append(inspect_packed(out / PACKED_NAME).code_bytes)
        points.append({"gamma": gamma, **point(summaries, code_bytes)})
        size = points[-1].get("packed_bytes", {"median": points[-1]["float32_bytes"]})["median"]
        quality = points[-1].get("test_accuracy", points[-1]["test_loss_nats"])["median"]
        print(f"gamma {gamma}: {size:,.0f} bytes, {quality:.4f}", flush=True)
        result = {"recipe": options.recipe, "rung": options.rung, "settings": changes, "points": points}
        write_result(out_file, {**facts(threads=config.threads), **result})


if __name__ == "__main__":
    main()
