"""Claim: a recipe reaches its accuracy as a mean over many runs, in so many seconds and so many FLOPs.

Every run is one seed of a recipe in this process; runs that the runs file has already are skipped, so this can be
stopped and started again. Time is that of the field's rule for CIFAR-10 records: from whitening to the end of the last
evaluation with its views, without loading data, building the network, checkpoints and earlier evaluations. The first
run of a session warms up and does not count on a GPU. FLOPs are counted by torch (two per multiplication and
addition): three forward passes per example trained, one per view tested. With ``--peak-tflops`` also the share of the
peak.

``--epochs`` trains each seed for several numbers of epochs: accuracy against epochs, as in the article's last figure;
with ``--recipes`` beside each other.

    python benchmarks/steps_accuracy.py --recipes cifar10 --seeds 3 --data path/to/cifar10
    python benchmarks/steps_accuracy.py --recipes cifar10 --seeds 100 --device cuda --peak-tflops 790
    python benchmarks/steps_accuracy.py --recipes cifar10-96 cifar10-page --epochs 10 20 40 70 100 --seeds 1
"""

import argparse
import json
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from environment import RESULTS, facts, hardware_slug, interval, read_runs, spread, without_home, write_result
from torch.utils.flop_counter import FlopCounterMode

from scrimp.cli.allocator import keep_large_blocks
from scrimp.train.config import TrainConfig
from scrimp.train.data import Dataset, load_dataset
from scrimp.train.evaluation import views_of
from scrimp.train.hardware import choose_device
from scrimp.train.models import ModelFacts, build_model
from scrimp.train.recipes import find_recipe
from scrimp.train.run import Started, run, shrink_of
from scrimp.train.surgery import change_model_, images_to_whiten
from scrimp.train.variants import with_savings


def train_one(config: TrainConfig, dataset: Dataset) -> dict[str, Any]:
    """One run in a directory that is thrown away, and its seconds by the rule above."""
    sizes: dict[str, int] = {}

    def remember(started: Started) -> None:
        sizes["parameters"] = started.num_parameters

    with tempfile.TemporaryDirectory() as folder:
        quiet = config.replace(evaluate_every=1e6, checkpoint_every=1e6, keep_checkpoints=1)
        summary = run(quiet, out=Path(folder) / "run", on_start=remember).summary
    assert summary is not None
    seconds = summary.total_seconds - summary.phase_seconds.get("checkpoint", 0.0) + whitening_seconds(config, dataset)
    return {
        "test_accuracy": summary.test_accuracy, "test_accuracy_one_view": summary.test_accuracy_one_view,
        "seconds": seconds, "train_seconds": summary.train_seconds, "sample_visits": summary.sample_visits,
        "num_parameters": sizes["parameters"],
    }  # fmt: skip


def whitening_seconds(config: TrainConfig, dataset: Dataset) -> float:
    """The time to find whitening filters, once more, because a run does it before its clock starts."""
    if not config.whiten:
        return 0.0
    device = choose_device(config.device)
    model = build_model(config.model, config.model_args, facts_of(dataset))
    started = time.perf_counter()
    images = images_to_whiten(config, dataset)
    change_model_(config, model, None if images is None else images.to(device))
    return time.perf_counter() - started


def facts_of(dataset: Dataset) -> ModelFacts:
    return ModelFacts.of_images(dataset.num_classes, dataset.image_shape)


def flops_of(config: TrainConfig, dataset: Dataset, visits: int) -> float:
    """Of a whole run: three forward passes per example visited, in the size it was seen in, and one per view tested."""
    model = build_model(config.model, config.model_args, facts_of(dataset))
    change_model_(config, model, images_to_whiten(config, dataset))
    model.eval()
    full = min(dataset.image_shape[1:])

    @cache
    def forward(side: int) -> int:
        shape = [round(side / full * length) for length in dataset.image_shape[1:]]
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.zeros(1, dataset.image_shape[0], *shape))
        return int(counter.get_total_flops())

    shrink, num_parts = shrink_of(config, dataset), 1000
    sides = [shrink.size_at((part + 0.5) / num_parts, full) if shrink else full for part in range(num_parts)]
    tested = len(views_of(config)[0]) * len(dataset.test)
    return 3 * visits * mean(forward(side) for side in sides) + tested * forward(full)


def table_of(runs: Sequence[Mapping[str, Any]], target: float, peak_tflops: float | None) -> list[dict[str, Any]]:
    """One line per recipe and number of epochs."""
    lines = []
    for recipe, epochs in dict.fromkeys((one["recipe"], one["num_epochs"]) for one in runs):
        same = [one for one in runs if (one["recipe"], one["num_epochs"]) == (recipe, epochs)]
        timed = [one for one in same if not one["is_warmup"]] or same
        seconds = spread([one["seconds"] for one in timed])
        flops = same[-1]["tflop"]
        line = {
            "recipe": recipe, "num_epochs": epochs, "accuracy": interval([one["test_accuracy"] for one in same]),
            "share_at_target": sum(one["test_accuracy"] >= target for one in same) / len(same),
            "seconds": seconds, "tflop": flops, "tflop_per_second": flops / seconds["median"],
        }  # fmt: skip
        alone = [one["test_accuracy_one_view"] for one in same if one["test_accuracy_one_view"] is not None]
        if alone:
            line["accuracy_one_view"] = interval(alone)
        if peak_tflops:
            line["share_of_peak"] = line["tflop_per_second"] / peak_tflops
        lines.append(line)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description="Accuracy and time of recipes over many runs.")
    parser.add_argument("--recipes", nargs="+", default=("cifar10",))
    parser.add_argument("--data", help="as for `scrimp train`; the recipe's if left out")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=float, nargs="+", help="the recipe's own if left out")
    parser.add_argument("--target", type=float, default=0.94)
    parser.add_argument("--model-args", nargs="+", default=(), metavar="NAME=VALUE", help="whole numbers")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--peak-tflops", type=float, help="of the hardware, dense bfloat16 (790 measured on an H200)")
    parser.add_argument("--runs", type=Path, default=RESULTS / "steps_accuracy_runs.jsonl")
    parser.add_argument("--out", type=Path, help="default: results/steps_accuracy_HARDWARE.json")
    options = parser.parse_args()
    keep_large_blocks()  # as `scrimp train` does
    hardware = hardware_slug()
    done = read_runs(options.runs)
    changed = {name: int(value) for name, _, value in (word.partition("=") for word in options.model_args)}
    setting = {"hardware": hardware, "model_args": changed}
    done = [one for one in done if setting.items() <= one.items()]
    on_gpu = options.device != "cpu" and torch.cuda.is_available()
    num_new = 0
    options.runs.parent.mkdir(parents=True, exist_ok=True)
    for seed in range(options.seeds):
        for recipe in options.recipes:
            own = find_recipe(recipe)
            if own.compress:  # what is measured is the tricks alone
                own = with_savings(own, ())
            for epochs in options.epochs or [own.num_epochs]:
                if any((one["recipe"], one["num_epochs"], one["seed"]) == (recipe, epochs, seed) for one in done):
                    continue
                config = own.replace(
                    num_epochs=epochs, seed=seed, device=options.device, threads=options.threads,
                    data=options.data or own.data, model_args={**own.model_args, **changed},
                )  # fmt: skip
                dataset = load_dataset(config.data, image_size=config.image_size)
                result = train_one(config, dataset)
                one = {
                    **setting, "recipe": recipe, "num_epochs": epochs, "seed": seed, **result,
                    "tflop": flops_of(config, dataset, result["sample_visits"]) / 1e12,
                    "is_warmup": on_gpu and num_new == 0,
                }  # fmt: skip
                num_new += 1
                done.append(one)
                with options.runs.open("a") as file:
                    file.write(json.dumps(one) + "\n")
                print(
                    f"{recipe}, {epochs:g} epochs, seed {seed}: {one['test_accuracy']:.4f}, {one['seconds']:.2f} s",
                    flush=True,
                )
    table = table_of(done, options.target, options.peak_tflops)
    for line in table:
        accuracy, seconds = line["accuracy"], line["seconds"]["median"]
        print(
            f"{line['recipe']:14} {line['num_epochs']:6g} epochs  {100 * accuracy['mean']:.2f} % "
            f"+- {100 * (accuracy['half_width'] or math.nan):.2f} (n={accuracy['n']})  {seconds:.2f} s  "
            f"{line['tflop']:.1f} TFLOP"
        )
    result = {"target": options.target, "data": without_home(options.data or ""), "table": table, "runs": done}
    write_result(options.out or RESULTS / f"steps_accuracy_{hardware}.json", {**facts(options.threads), **result})


if __name__ == "__main__":
    main()
