"""What pruning costs in accuracy, at which saving, against the controls that matter. Resumable.

Rows: full data; full data on a schedule shortened to the same visits (the control that papers leave out), also with the
learning rates of the pruned runs, visit by visit; dynamic random; InfoBatch (mean threshold); Budget; with
``--all-rules`` the other rules as well. Columns: test accuracy with a 95 % confidence interval of the mean, the
difference to full data and to the shortened schedule with intervals over paired seeds, visits saved, time saved.

How. A seed fixes the initial weights and the augmentation of all rows, so that rows are compared seed by seed. The
order is seed by seed, then row by row: a stop leaves complete seeds. Every run is one line of a JSON-lines file, and is
not repeated; the table is made of whatever is there. Times are wall times of the steps and of planning, without
evaluation; take them seriously only if nothing else ran. Processor seconds (one thread) bear company better.

With ``--lr-grid`` every row first looks for its own learning rate, on seeds of its own from 1000 on: a weighted or a
shortened row may want another one than full data, and a table at one rate can be about nothing else. With
``--num-samples`` a seed also fixes the part of the training images that all its rows share.

    python benchmarks/samples_table.py --data cifar10 --recipe cifar10-small --seeds 10 --keep 0.7
    python benchmarks/samples_table.py --recipe fashion-mnist --num-samples 3000 --num-epochs 40 --lr-grid 0.1 0.2 0.4
    python benchmarks/samples_table.py --data fashion-mnist --recipe fashion-mnist --seeds 10 --keep 0.5 --all-rules
    python benchmarks/samples_table.py --runs benchmarks/results/samples_table_runs.jsonl --only-table
"""

import argparse
import dataclasses
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any, Literal

import numpy as np
import torch
from environment import RESULTS, facts, interval, read_runs, write_result
from torch.nn import functional

import scrimp
from scrimp._core.index_plan import ShufflePlan
from scrimp._core.rng import generator
from scrimp.samples import (
    Budget,
    DynamicRandom,
    EpsilonGreedy,
    MeanThreshold,
    OrderDP,
    Quantiles,
    RePB,
    Rule,
    SeTa,
    StaticRandom,
    UpperConfidenceBound,
)
from scrimp.train.config import TrainConfig
from scrimp.train.data import Dataset, Split, load_dataset
from scrimp.train.evaluation import evaluate
from scrimp.train.hardware import choose_autocast, choose_device, seeded
from scrimp.train.job import Job
from scrimp.train.models import build_model
from scrimp.train.optimization import build_optimizer, learning_rate_factor, set_learning_rate
from scrimp.train.recipes import RECIPES
from scrimp.train.run import _facts
from scrimp.train.surgery import change_model_, images_to_whiten
from scrimp.train.task import Task, build_loaders

SAVED = ("visits_saved", "train_seconds_saved", "cpu_seconds_saved")
FIRST_TUNING_SEED = 1000
Runs = list[dict[str, Any]]


@dataclass(frozen=True)
class Row:
    """A line of the table. ``rule`` is None for full data; ``shortened`` scales the number of epochs.

    A pruned epoch has fewer steps, so that a schedule by epochs gives more of all steps to the full epochs at its two
    ends. ``like_pruned`` gives the shortened schedule the very same learning rates, visit by visit.
    """

    name: str
    rule: Rule | None = None
    shortened: bool = False
    like_pruned: bool = False
    anneal: float = 0.125
    scale: Literal["sum", "constant"] = "constant"
    num_full_first: int = 1  # for all rows with weights, so that they make the same visits


def paper_ratio(keep: float) -> float:
    """The mean rule's prune ratio for about this budget: about 60 % of the losses lie below their mean.

    At most 0.75, a weight of 4, as high as the paper's own variants go.
    """
    return min(0.75, (1 - keep) / 0.6)


def rows_for(keep: float, *, all_rules: bool) -> list[Row]:
    """The rows at a nominal ``keep`` of each pruned epoch."""
    rows = [
        Row("full"),
        Row("shortened", shortened=True),
        Row("shortened, same rates", shortened=True, like_pruned=True),
        Row("dynamic random", DynamicRandom(keep)),
        Row("InfoBatch", MeanThreshold(paper_ratio(keep)), scale="sum"),
        Row("budget", Budget(keep)),
    ]
    if all_rules:
        rows += [
            Row("InfoBatch, constant scale", MeanThreshold(paper_ratio(keep))),
            Row("quantiles", Quantiles(), scale="sum"),
            Row("budget, linear", Budget(keep, power=1, max_weight=2 / keep)),
            Row("budget, smoothed", Budget(keep, momentum=0.5)),
            Row("static random", StaticRandom(keep), anneal=0.0, num_full_first=0),
            Row("epsilon-greedy", EpsilonGreedy(keep)),
            Row("upper confidence bound", UpperConfidenceBound(keep)),
            Row("SeTa", SeTa(keep)),
            Row("RePB", RePB(paper_ratio(keep))),
            Row("OrderDP", OrderDP(pool=math.sqrt(keep), top=math.sqrt(keep)), anneal=0.0),
        ]
    return rows


def epochs_of(row: Row, config: TrainConfig, keep: float) -> float:
    """The epochs of the schedule; shortened to the visits that a rule with this budget makes."""
    if not row.shortened:
        return config.num_epochs
    budget = scrimp.SamplePruner(10**6, config.num_epochs, DynamicRandom(keep), num_full_first=1)
    return budget.total_steps(1) / 10**6


def progress_of(row: Row, num_epochs: float, keep: float) -> Callable[[float], float]:
    """The schedule's progress as a function of the fraction of all visits that are made."""
    if not row.like_pruned:
        return lambda visited: visited
    schedule = scrimp.SamplePruner(10**6, num_epochs, DynamicRandom(keep), num_full_first=1).schedule
    visits = [1.0 if schedule.is_full(epoch) else keep for epoch in range(schedule.num_begun)]
    visits[-1] *= num_epochs - (schedule.num_begun - 1)
    reached = [sum(visits[:epoch]) / sum(visits) for epoch in range(len(visits) + 1)]
    ends = [min(epoch, num_epochs) / num_epochs for epoch in range(len(visits) + 1)]
    return lambda visited: float(np.interp(visited, reached, ends))


def train_one(config: TrainConfig, dataset: Dataset, row: Row, keep: float) -> dict[str, Any]:
    """One run, with the recipe's network, augmentation and schedule."""
    progress = progress_of(row, config.num_epochs, keep)
    config = config.replace(num_epochs=epochs_of(row, config, keep))
    device = choose_device(config.device)
    autocast = choose_autocast(config.precision, device)
    pruner: scrimp.SamplePruner | None = None

    def sampler(num_samples: int) -> Any:
        nonlocal pruner
        if row.rule is None:
            return ShufflePlan(num_samples, seed=config.seed)
        pruner = scrimp.SamplePruner(
            num_samples,
            config.num_epochs,
            row.rule,
            anneal=row.anneal,
            num_full_first=row.num_full_first,
            scale=row.scale,
            seed=config.seed,
        )
        return pruner

    with seeded(config.seed, device):
        dtype = autocast or torch.float32
        loader, test = build_loaders(config, dataset, device=device, dtype=dtype, rank=0, world_size=1, sampler=sampler)
        model = build_model(config.model, config.model_args, _facts(config, dataset))
        change_model_(config, model, images_to_whiten(config, dataset))
        model.to(device=device, memory_format=torch.channels_last)
        task, optimizer = Task(dataset.kind, config.label_smoothing), build_optimizer(config, model)
        job = Job(config, model, task, loader, test, optimizer, device, autocast)
        cost = _train(job, pruner, progress)
        measured = evaluate(job)
    return {**measured, **cost, "num_epochs": config.num_epochs}


def _train(job: Job, pruner: scrimp.SamplePruner | None, schedule: Callable[[float], float]) -> dict[str, float]:
    """Visits, wall seconds and processor seconds of the steps and of planning."""
    config, visits, seconds, cpu_seconds = job.config, 0, 0.0, 0.0
    for epoch in range(math.ceil(config.num_epochs - 1e-9)):
        begin, cpu_begin = time.perf_counter(), time.process_time()
        job.loader.set_epoch(epoch)
        num_steps = len(job.loader)
        wanted = max(1, round(num_steps * min(1.0, config.num_epochs - epoch)))
        job.model.train()
        for position, batch in enumerate(job.loader):
            if position == wanted:
                break
            progress = (epoch + (position + 0.5) / num_steps) / config.num_epochs
            set_learning_rate(job.optimizer, learning_rate_factor(config, schedule(progress)))
            with job.precision():
                inputs, targets = job.task.split(batch.inputs, batch.targets)
                losses = job.task.losses(job.model(inputs), targets)
            loss = losses.mean() if pruner is None else pruner.reduce(losses, index=batch.index)
            loss.backward()
            job.optimizer.step()
            job.optimizer.zero_grad(set_to_none=True)
            visits += batch.global_size
        if job.device.type == "cuda":
            torch.cuda.synchronize(job.device)
        seconds += time.perf_counter() - begin
        cpu_seconds += time.process_time() - cpu_begin
    return {"visits": visits, "train_seconds": seconds, "cpu_seconds": cpu_seconds}


def table_of(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One entry per row, compared over the seeds that both sides have."""
    by_row: dict[str, dict[int, Mapping[str, Any]]] = {}
    for run in runs:
        by_row.setdefault(run["row"], {})[run["seed"]] = run
    table = []
    for name, of_seed in by_row.items():
        entry: dict[str, Any] = {"row": name, "accuracy": interval([r["test_accuracy"] for r in of_seed.values()])}
        for other in ("full", "shortened"):
            both = sorted(of_seed.keys() & by_row.get(other, {}).keys())
            if name != other and both:
                gains = [of_seed[s]["test_accuracy"] - by_row[other][s]["test_accuracy"] for s in both]
                entry[f"minus_{other}"] = interval(gains)
        shared = sorted(of_seed.keys() & by_row.get("full", {}).keys())
        for what in ("visits", "train_seconds", "cpu_seconds"):
            if shared:
                entry[f"{what}_saved"] = mean(1 - of_seed[s][what] / by_row["full"][s][what] for s in shared)
        table.append(entry)
    return table


def show(table: Sequence[Mapping[str, Any]]) -> None:
    print(
        f"{'row':24s} {'accuracy %':>16s} {'- full':>16s} {'- shortened':>16s} {'visits saved':>13s}"
        f" {'time saved':>11s} {'CPU saved':>10s}"
    )
    for entry in table:
        cells = [entry["accuracy"], entry.get("minus_full"), entry.get("minus_shortened")]
        shown = [
            "" if c is None else f"{100 * c['mean']:.2f} +- {100 * (c['half_width'] or math.nan):.2f}" for c in cells
        ]
        saved = [f"{100 * entry.get(key, math.nan):.1f} %" for key in SAVED]
        print(
            f"{entry['row']:24s} {shown[0]:>16s} {shown[1]:>16s} {shown[2]:>16s} {saved[0]:>13s} {saved[1]:>11s}"
            f" {saved[2]:>10s}"
        )


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Accuracy of pruned training against its controls.")
    parser.add_argument("--recipe", default="digits", choices=[name for name in RECIPES if name != "text"])
    parser.add_argument("--data", help="as for `scrimp train`; the recipe's if left out")
    parser.add_argument("--num-epochs", type=float)
    parser.add_argument("--model", help="another network than the recipe's")
    parser.add_argument("--width", type=int, help="the network's width")
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--lr-grid", type=float, nargs="+", help="learning rates of which every row takes its best")
    parser.add_argument("--tuning-seeds", type=int, default=2, help="runs per row and rate of the grid")
    parser.add_argument("--num-samples", type=int, help="a random part of the training images")
    parser.add_argument("--half-size", action="store_true", help="images at half their side, for many small runs")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--keep", type=float, default=0.7, help="fraction of a pruned epoch, nominal")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--all-rules", action="store_true")
    parser.add_argument("--rows", nargs="+", help="only these rows, by name")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--runs", type=Path, default=RESULTS / "samples_table_runs.jsonl")
    parser.add_argument("--only-table", action="store_true", help="train nothing")
    parser.add_argument("--out", type=Path, default=RESULTS / "samples_table.json")
    options = parser.parse_args(words)
    torch.set_num_threads(options.threads)
    names = ("data", "num_epochs", "device", "learning_rate", "batch_size")
    changes = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    config = RECIPES[options.recipe]().replace(**changes, lookahead=False)  # as in the runs that are there
    if options.model is not None:
        config = config.with_model(options.model)
    if options.width is not None:
        config = config.replace(model_args={**config.model_args, "width": options.width})
    setting = {
        "recipe": options.recipe,
        "model": config.model,
        "model_args": dict(config.model_args),
        "batch_size": config.batch_size,
        "num_epochs_full": config.num_epochs,
        "keep": options.keep,
    }
    rows = rows_for(options.keep, all_rules=options.all_rules or bool(options.rows))
    if options.rows:
        if unknown := set(options.rows) - {row.name for row in rows}:
            parser.error(f"no such rows: {sorted(unknown)}; there are {[row.name for row in rows]}")
        rows = [row for row in rows if row.name in options.rows]
    if options.half_size:
        setting["half_size"] = True
    bench = Bench(config, setting, options.num_samples, options.runs)
    grid = options.lr_grid or [config.learning_rate]
    if not options.only_table:
        dataset = load_dataset(config.data)
        bench.dataset = halved(dataset) if options.half_size else dataset
        for seed in range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + (options.tuning_seeds if len(grid) > 1 else 0)):
            for row in rows:
                for rate in grid:
                    bench.ensure(row, seed, rate)
        for seed in range(options.seeds):
            for row in rows:
                bench.ensure(row, seed, bench.best_rate(row.name, grid))
    rates = {row.name: bench.best_rate(row.name, grid) for row in rows}
    table = table_of([run for run in bench.done if is_measured(run, rates, grid)])
    show(table)
    tuned = {row.name: bench.tuning(row.name, grid) for row in rows} if len(grid) > 1 else {}
    rate = {"learning_rate": config.learning_rate} if len(grid) == 1 else {"learning_rates": rates, "tuning": tuned}
    part = {} if options.num_samples is None else {"num_samples": options.num_samples}
    write_result(options.out, {**facts(threads=options.threads), **setting, **part, **rate, "table": table})


def is_measured(run: Mapping[str, Any], rates: Mapping[str, float], grid: Sequence[float]) -> bool:
    """Whether a run belongs into the table: at its row's rate, and not of the search for that."""
    rate = rates.get(run["row"], grid[0] if len(grid) == 1 else None)
    return run["seed"] < FIRST_TUNING_SEED and run["learning_rate"] == rate


class Bench:
    """The runs of one setting that there are, and those that are missing."""

    def __init__(self, config: TrainConfig, setting: Mapping[str, Any], num_samples: int | None, path: Path) -> None:
        self.config, self.setting, self.num_samples, self.path = config, setting, num_samples, path
        self.dataset: Dataset | None = None
        self.done: Runs = [
            run
            for run in read_runs(path)
            if setting.items() <= run.items()
            and run.get("num_samples") == num_samples
            and run.get("half_size") == setting.get("half_size")
        ]

    def ensure(self, row: Row, seed: int, rate: float) -> None:
        """Train what was not trained yet, and note it in the file."""
        if any((run["row"], run["seed"], run["learning_rate"]) == (row.name, seed, rate) for run in self.done):
            return
        assert self.dataset is not None
        config = self.config.replace(seed=seed, learning_rate=rate)
        result = train_one(config, part_of(self.dataset, self.num_samples, seed), row, self.setting["keep"])
        rule = None if row.rule is None else {"name": type(row.rule).__name__, **_plain(row.rule)}
        part = {} if self.num_samples is None else {"num_samples": self.num_samples}
        run = {**self.setting, **part, "learning_rate": rate, "row": row.name, "seed": seed, "rule": rule, **result}
        self.done.append(run)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(run) + "\n")
        print(
            f"seed {seed}, {row.name}, rate {rate:g}: {result['test_accuracy']:.4f}, {result['train_seconds']:.1f} s",
            flush=True,
        )

    def tuning(self, row: str, grid: Sequence[float]) -> dict[str, float]:
        """Mean accuracy by learning rate, over the tuning seeds."""
        found: dict[str, float] = {}
        for rate in grid:
            runs = [run for run in self.done if run["row"] == row and run["learning_rate"] == rate]
            if accuracies := [run["test_accuracy"] for run in runs if run["seed"] >= FIRST_TUNING_SEED]:
                found[f"{rate:g}"] = mean(accuracies)
        return found

    def best_rate(self, row: str, grid: Sequence[float]) -> float:
        """The rate of the grid that the tuning seeds like best; of equals the first."""
        found = self.tuning(row, grid)
        return max(grid, key=lambda rate: found.get(f"{rate:g}", -math.inf))


def halved(dataset: Dataset) -> Dataset:
    """Every two by two pixels averaged."""

    def half(split: Split) -> Split:
        small = [functional.avg_pool2d(part.float(), 2).round().to(torch.uint8) for part in split.inputs.split(1000)]
        return dataclasses.replace(split, inputs=torch.cat(small).contiguous(memory_format=torch.channels_last))

    return dataclasses.replace(dataset, train=half(dataset.train), test=half(dataset.test))


def part_of(dataset: Dataset, num_samples: int | None, seed: int) -> Dataset:
    """The data set with a random part of its training images; the same for all rows of a seed."""
    if num_samples is None:
        return dataset
    train = dataset.train
    index = torch.randperm(len(train.inputs), generator=generator(seed, "part"))[:num_samples]
    targets = None if train.targets is None else train.targets[index]
    return dataclasses.replace(dataset, train=dataclasses.replace(train, inputs=train.inputs[index], targets=targets))


def _plain(rule: Rule) -> dict[str, Any]:
    return {name: value for name, value in asdict(rule).items() if not callable(value)}


if __name__ == "__main__":
    main()
