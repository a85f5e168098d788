"""Claim: each rung of D. Page's ladder makes training shorter than the rung before, at the same accuracy.

Two parts, beside his published figures:

- speed: the time of a training step with each rung's network, and examples per second against the rung before. Steps of
  all rungs alternate; CPU time on a CPU, device time by events on a GPU. The control is the first rung once more.
- accuracy: every rung at the same numbers of epochs (``--epochs``), over seeds. The table has each rung against the one
  before, paired by seed, and the epochs that it takes to ``--target``: between two numbers of epochs by a straight line
  through the mean accuracies over the logarithm of the epochs. It also says what it can see: the difference that a
  paired test with 5 % error finds four times in five, from the spread of the differences at hand.

Runs that the runs file has already are skipped, so this can be stopped and started again. Defaults are for a CPU: a
network of an eighth of the width, images of half the side (with crops and cutouts of half the size) and fewer epochs.
On a GPU in full:

    python benchmarks/steps_ladder.py --data path/to/cifar10 --page ladder.html
    python benchmarks/steps_ladder.py --data path/to/cifar10 --device cuda --width 64 --image-size 32 --seeds 20 \\
        --epochs 10 13 14 15 17 18 20 23 25 --target 0.94

Accuracy against epochs, first and last rung, as in the article's last figure, on a GPU:

    python benchmarks/steps_ladder.py --data path/to/cifar10 --device cuda --width 64 --image-size 32 --seeds 5 \\
        --rungs 0 10 --epochs 10 20 40 70 100 --parts accuracy --page ladder.html
"""

import argparse
import json
import math
import time
from collections.abc import Mapping, Sequence
from importlib import resources
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from environment import (
    RESULTS,
    detectable,
    facts,
    hardware_slug,
    interval,
    read_runs,
    spread,
    without_home,
    write_result,
)
from small_runs import scaled, train_in_memory

from scrimp.report.figures import Figure, Line, line_chart
from scrimp.report.named_bars import named_bars
from scrimp.steps import Batch
from scrimp.train.config import TrainConfig
from scrimp.train.data import Dataset, load_dataset
from scrimp.train.hardware import choose_autocast, choose_device, seeded
from scrimp.train.job import Job, Seams
from scrimp.train.page_ladder import LADDER, page_rung
from scrimp.train.run import _build_job

CONTROL = "baseline again"
FULL_SIDE = 32  # of the images that the settings of the rungs are for


def config_of(rung: int, options: argparse.Namespace) -> TrainConfig:
    """A rung at the width, with images of the size and on the device of this benchmark."""
    config = page_rung(rung)
    return config.replace(
        model_args={**config.model_args, "width": options.width}, data=str(options.data), device=options.device,
        threads=options.threads, batch_size=options.batch_size,
        crop_padding=config.crop_padding * options.image_size // FULL_SIDE,
        cutout=round(config.cutout * options.image_size / FULL_SIDE),
    )  # fmt: skip


def step_seconds(job: Job, batch: Batch) -> float:
    """One training step on a batch that is made already."""
    on_gpu = job.device.type == "cuda"
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2)) if on_gpu else (None, None)
    if first is not None:
        first.record()
    started = time.process_time()
    with job.precision():
        assert batch.targets is not None
        losses = job.task.losses(job.model(batch.inputs), batch.targets)
    losses.mean().backward()
    job.optimizer.step()
    job.optimizer.zero_grad(set_to_none=True)
    for after_step in job.seams.after_step:
        after_step(1)
    if first is None or last is None:
        return time.process_time() - started
    last.record()
    torch.cuda.synchronize()
    return float(first.elapsed_time(last)) / 1000


def measure_speed(dataset: Dataset, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Examples per second of the rungs' steps, alternating; the first two of each do not count."""
    device = choose_device(options.device)
    jobs: dict[str, Job] = {}
    for number, name in enumerate([*(rung.name for rung in LADDER), CONTROL]):
        config = config_of(number % len(LADDER), options)
        with seeded(0, device):
            jobs[name] = _build_job(config, dataset, device, choose_autocast(config.precision, device), Seams())
        jobs[name].model.train()
    batches = {name: next(iter(job.loader)) for name, job in jobs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for number in range(-2, options.rounds):
        for name, job in jobs.items():
            spent = step_seconds(job, batches[name])
            if number >= 0:
                seconds[name].append(spent)
    baseline = LADDER[0].name
    before = {CONTROL: baseline, **{after.name: rung.name for rung, after in pairwise(LADDER)}}
    return [
        {
            "name": name,
            "examples_per_second": spread([options.batch_size / one for one in of_rung]),
            "times_the_baseline": ratio(seconds[baseline], of_rung),
            "times_the_rung_before": ratio(seconds[before[name]], of_rung) if name in before else None,
        }
        for name, of_rung in seconds.items()
    ]


def ratio(slower: Sequence[float], faster: Sequence[float]) -> dict[str, float | int]:
    """How many times as fast, step by step."""
    return spread([a / b for a, b in zip(slower, faster, strict=True)])


def train_one(config: TrainConfig, dataset: Dataset) -> dict[str, Any]:
    """One run; evaluated at its end only."""
    _, measured = train_in_memory(config, dataset)
    names = ("test_accuracy", "test_accuracy_one_view", "sample_visits", "cpu_seconds")
    return {name: measured.get(name) for name in names}


def told(values: Sequence[float]) -> dict[str, Any]:
    """Mean, half-width of its 95 % interval, and the true difference that as many values find four times in five."""
    return {**interval(values), "detectable": detectable(values)}


def accuracy_table(runs: Sequence[Mapping[str, Any]], target: float | None) -> dict[str, Any]:
    """Each rung at each number of epochs against the one before, and epochs to the target.

    Without a target it is what the baseline reaches at the largest number of epochs.
    """
    by_place: dict[tuple[int, float], dict[int, float]] = {}
    for one in runs:
        by_place.setdefault((one["rung"], one["num_epochs"]), {})[one["seed"]] = one["test_accuracy"]
    longest = max((epochs for rung, epochs in by_place if rung == 0), default=None)
    if target is None and longest is not None:
        target = mean(by_place[0, longest].values())
    rows = []
    for number, rung in enumerate(LADDER):
        reached = {epochs: of_seed for (one, epochs), of_seed in sorted(by_place.items()) if one == number}
        row: dict[str, Any] = {"rung": number, "name": rung.name, "at_epochs": {}}
        for epochs, of_seed in reached.items():
            entry: dict[str, Any] = {"accuracy": told([*of_seed.values()])}
            former = by_place.get((number - 1, epochs), {})
            if both := sorted(of_seed.keys() & former.keys()):
                entry["minus_the_rung_before"] = told([of_seed[seed] - former[seed] for seed in both])
            row["at_epochs"][f"{epochs:g}"] = entry
        if target is not None and reached:
            row["epochs_to_target"] = epochs_to({e: mean(v.values()) for e, v in reached.items()}, target)
        rows.append({
            **row,
            "published": {
                "num_epochs": page_rung(number).num_epochs, "accuracy_percent": rung.published_accuracy,
                "v100_seconds": rung.published_seconds,
            },
        })  # fmt: skip
    return {"target": target, "rungs": rows}


def epochs_to(accuracy: Mapping[float, float], target: float) -> float | None:
    """Where the line through (log epochs, accuracy) first reaches ``target``; ``None`` if it does not."""
    points = sorted(accuracy.items())
    if points[0][1] >= target:
        return points[0][0]
    for (few, low), (many, high) in pairwise(points):
        if low < target <= high:
            return math.exp(math.log(few) + (target - low) / (high - low) * math.log(many / few))
    return None


def measure_accuracy(dataset: Dataset, options: argparse.Namespace) -> list[dict[str, Any]]:
    """All runs that are asked for, of which the runs file may have some.

    Seeds are the outer loop, so that the rungs of an unfinished file can be compared.
    """
    setting = {
        "width": options.width, "image_size": options.image_size, "batch_size": options.batch_size,
        "hardware": hardware_slug(),
    }  # fmt: skip
    done = [one for one in read_runs(options.runs) if setting.items() <= one.items()]
    known = {(one["rung"], one["num_epochs"], one["seed"]) for one in done}
    options.runs.parent.mkdir(parents=True, exist_ok=True)
    for seed in range(options.seeds):
        for epochs in options.epochs:
            for rung in options.rungs:
                if (rung, epochs, seed) in known:
                    continue
                result = train_one(config_of(rung, options).replace(num_epochs=epochs, seed=seed), dataset)
                one = {**setting, "rung": rung, "num_epochs": epochs, "seed": seed, **result}
                done.append(one)
                with options.runs.open("a") as file:
                    file.write(json.dumps(one) + "\n")
                print(
                    f"seed {seed}, {epochs:g} epochs, {LADDER[rung].name}: {result['test_accuracy']:.4f} "
                    f"in {result['cpu_seconds']:.0f} s", flush=True,
                )  # fmt: skip
    return done


def show(result: Mapping[str, Any]) -> None:
    """Both parts as lines."""
    for row in result.get("speed", []):
        before = row["times_the_rung_before"]
        against = "" if before is None else f", {before['median']:.3f} times the rung before"
        print(f"{row['name']:40} {row['examples_per_second']['median']:8.0f} examples/s{against}")
    for row in result.get("accuracy", {}).get("rungs", []):
        cells = [f"{e}: {100 * at['accuracy']['mean']:.2f}" for e, at in row["at_epochs"].items()]
        if cells:
            print(f"{row['name']:40} {'  '.join(cells)}  to target: {row.get('epochs_to_target')}")


def table_lines(result: Mapping[str, Any]) -> list[str]:
    """A Markdown table: speed and accuracy of each rung against the one before, and epochs to the target."""
    rungs = result["accuracy"]["rungs"]
    numbers = list(dict.fromkeys(epochs for row in rungs for epochs in row["at_epochs"]))
    heads = ["rung", "speed", *(f"{epochs} epochs, %" for epochs in numbers)]
    heads += [f"epochs to {100 * result['accuracy']['target']:.2f} %", "published: epochs", "seconds"]
    lines = [_line(heads), _line(["---"] * len(heads))]
    speed = {row["name"]: row["times_the_rung_before"] for row in result["speed"]}
    for row in rungs:
        times = speed[row["name"]]
        cells = [row["name"], "" if times is None else f"{times['median']:.2f}x"]
        for epochs in numbers:
            at = row["at_epochs"].get(epochs)
            cells.append("" if at is None else f"{100 * at['accuracy']['mean']:.2f}{_gain(at)}")
        reached = row.get("epochs_to_target")
        cells += ["-" if reached is None else f"{reached:.2f}", f"{row['published']['num_epochs']:g}"]
        lines.append(_line([*cells, f"{row['published']['v100_seconds']:g}"]))
    return lines


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _gain(at: Mapping[str, Any]) -> str:
    """Points over the rung before, with the half-width of their interval."""
    gain = at.get("minus_the_rung_before")
    if gain is None:
        return ""
    spread_of = "" if gain["half_width"] is None else f" +- {100 * gain['half_width']:.2f}"
    return f" ({100 * gain['mean']:+.2f}{spread_of})"


def figures_of(result: Mapping[str, Any]) -> list[Figure]:
    """The ladder as bars: published, and what was measured."""
    seconds = [(rung.name, rung.published_seconds or 0.0) for rung in LADDER]
    figures = [named_bars(seconds, title="Published", unit="seconds on one V100", description="training time by rung")]
    speed = [(row["name"], row["examples_per_second"]["median"]) for row in result.get("speed", [])]
    if speed:
        figures.append(named_bars(speed, title="Speed", unit="examples per second", description="speed by rung"))
    rungs = result.get("accuracy", {}).get("rungs", [])
    epochs = [(row["name"], row["epochs_to_target"] or 0.0) for row in rungs if "epochs_to_target" in row]
    if epochs:
        target = f"epochs to {100 * result['accuracy']['target']:.2f} %"
        figures.append(named_bars(epochs, title="Length", unit=target, description="epochs to the target by rung"))
    lines = [epochs_line(row) for row in rungs if row["rung"] in (0, len(LADDER) - 1) and len(row["at_epochs"]) > 1]
    if lines:
        described = "; ".join(f"{line.name} {line.y[-1]:.2f} % after {line.x[-1]:g} epochs" for line in lines)
        figures.append(
            line_chart(lines, title="Accuracy against epochs", description=described, unit="%", x_label="epochs")
        )
    return figures


def epochs_line(row: Mapping[str, Any]) -> Line:
    """Mean accuracy of a rung over the numbers of epochs that it was trained for."""
    points = [(float(epochs), 100 * at["accuracy"]["mean"]) for epochs, at in row["at_epochs"].items()]
    return Line(row["name"], [x for x, _ in points], [y for _, y in points], is_marked=True)


def write_figures(path: Path, result: Mapping[str, Any]) -> None:
    """The figures as one page that needs no network."""
    style = (resources.files("scrimp.report") / "templates" / "page.css").read_text(encoding="utf-8")
    body = "".join(figure.html for figure in figures_of(result))
    path.write_text(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>The ladder</title><style>{style}</style>'
        f"<body><main><h1>The ladder</h1>{body}</main></body></html>\n",
        encoding="utf-8",
    )
    print(f"written: {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed and accuracy of each rung of Page's ladder.")
    parser.add_argument("--data", default="cifar10", help="as for `scrimp train`")
    parser.add_argument("--parts", nargs="+", choices=("speed", "accuracy"), default=("speed", "accuracy"))
    parser.add_argument("--width", type=int, default=8, help="channels of the first stage; 64 is Page's")
    parser.add_argument("--image-size", type=int, default=16, help="side that images are scaled to; 32 is Page's")
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=9, help="steps of each rung that count")
    parser.add_argument("--epochs", type=float, nargs="+", default=(2.0, 4.0), help="each rung is trained for each")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--rungs", type=int, nargs="+", default=range(len(LADDER)))
    parser.add_argument("--target", type=float, help="accuracy; the baseline's at the largest number of epochs")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=RESULTS / "steps_ladder_runs.jsonl")
    parser.add_argument("--out", type=Path, default=RESULTS / "steps_ladder.json")
    parser.add_argument("--page", type=Path, help="also write the ladder as bar charts, one HTML page")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    dataset = load_dataset(options.data)
    if options.image_size != dataset.image_shape[1]:
        dataset = scaled(dataset, options.image_size)
    names = ("width", "image_size", "batch_size")
    settings = {**{name: getattr(options, name) for name in names}, "data": without_home(options.data)}
    result: dict[str, Any] = {"settings": settings}
    if "speed" in options.parts:
        result["speed"] = measure_speed(dataset, options)
    if "accuracy" in options.parts:
        result["accuracy"] = accuracy_table(measure_accuracy(dataset, options), options.target)
    show(result)
    write_result(options.out, {**facts(threads=options.threads), **result})
    if options.page is not None:
        write_figures(options.page, result)


if __name__ == "__main__":
    main()
