"""What each trick of ``scrimp.steps`` does to accuracy: the same short training with it and without it, seed by seed.

The training is the ``cifar10`` recipe made small: a quarter of its width, two epochs of the first 25,000 images of
CIFAR-10 in batches of 250, scaled to 24 x 24 pixels (growing from 16), and judged as they are. A trick that the recipe
has is taken out, one that it has not is put in; the effect is always *with* minus *without* in points of test accuracy,
with the 95 % interval of its mean over paired seeds and the difference that as many seeds find four times in five. A
seed fixes weights, order and augmentation.

Two epochs show what makes training faster. What keeps a network from learning its training images by heart (cutout,
label smoothing, crops) helps in long training and is in the way here, and a trick that shows nothing at this size may
show something at another. What a step takes with each trick is for ``steps_cost.py``, whose steps alternate.

Runs that the runs file has already are skipped; seeds are the outer loop.

    python benchmarks/steps_effects.py --data path/to/cifar10
    python benchmarks/steps_effects.py --data path/to/cifar10 --rows "whitened input" --seeds 12
"""

import argparse
import dataclasses
import json
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from environment import RESULTS, detectable, facts, hardware_slug, interval, read_runs, without_home, write_result
from small_runs import first_samples, scaled, train_in_memory
from torch import Tensor, nn

from scrimp import steps
from scrimp.train.config import TrainConfig
from scrimp.train.data import Dataset, load_dataset
from scrimp.train.evaluation import evaluate
from scrimp.train.job import Job
from scrimp.train.recipes import find_recipe
from scrimp.train.variants import with_savings

BASE = "the recipe"
ALONE = "test_accuracy"


@dataclass(frozen=True)
class Row:
    """One training: the base's, but for some settings or for what ``change`` does to the job."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    change: Callable[[Job], Job] = lambda job: job


@dataclass(frozen=True)
class Effect:
    """A trick: the row that has it, the row that has it not, and which accuracy of each is compared."""

    trick: str
    card: str
    having: str
    lacking: str
    judged_by: tuple[str, str] = (ALONE, ALONE)


def activation(make: Callable[[], nn.Module]) -> Callable[[Job], Job]:
    """Another activation in the place of each GELU; it has no parameters, so the optimizer is right as it is."""

    def change(job: Job) -> Job:
        steps.replace_activation_(job.model, lambda _old: make(), of=nn.GELU)
        return job

    return change


def pool_late(job: Job) -> Job:
    """Each group's pooling behind its first activation, where it was before Page moved it."""
    for group in job.model.children():
        if isinstance(group, nn.Sequential) and "pool" in group._modules:
            names = ["conv1", "norm1", "act1", "pool"]
            late = OrderedDict((name, group._modules[name]) for name in names)
            group._modules = {**late, **{name: part for name, part in group._modules.items() if name not in late}}
    return job


class TwoBranches(nn.Module):
    """A model that trains and predicts on image and mirror image together."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        return steps.two_branch(self.inner, images)


def two_branches(job: Job) -> Job:
    return dataclasses.replace(job, model=TwoBranches(job.model))


def rows_of(base: TrainConfig) -> dict[str, Row]:
    """All trainings by name."""
    sgd, args = find_recipe("cifar10-sgd"), base.model_args
    published = steps.decoupled_sgd(11.5, 0.0153, momentum=sgd.momentum, batch_size=base.batch_size)
    rates = ("first_learning_rate", "final_learning_rate", "warmup")
    as_sgd = {"optimizer": "sgd", "learning_rate": published.lr, "weight_decay": published.weight_decay}
    return {
        BASE: Row(),
        "no whitening": Row({"whiten": False, "whiten_bias_epochs": None}),
        "scales trained": Row({"freeze_bn_scale": False}),
        "biases as fast as weights": Row({"bias_scale": 1.0}),
        "no identity filters": Row({"model_args": {**args, "dirac": False}}),
        "Lookahead": Row({"lookahead": True}),
        "SGD": Row({**as_sgd, **{name: getattr(sgd, name) for name in rates}}),
        "full size": Row({"first_size": None}),
        "random flips": Row({"flip": "random"}),
        "cutout": Row({"cutout": 6}),
        "parts, scaled back": Row({"crop_padding": 0, "crop_scale": 0.25}),
        "constant rate": Row({"decay": "constant"}),
        "no smoothing": Row({"label_smoothing": 0.0}),
        "ghost batches": Row({"ghost_batch": 32}),
        "ReLU": Row(change=activation(nn.ReLU)),
        "CELU": Row(change=activation(lambda: nn.CELU(0.3))),
        "pooling late": Row(change=pool_late),
        "two branches": Row(change=two_branches),
    }


EFFECTS = (
    Effect("whitened input", "whitening", BASE, "no whitening"),
    Effect("frozen batch-norm scales", "bn-scale", BASE, "scales trained"),
    Effect("batch-norm biases 64 times as fast", "bn-scale", BASE, "biases as fast as weights"),
    Effect("identity filters", "dirac", BASE, "no identity filters"),
    Effect("Lookahead", "weight-average", "Lookahead", BASE),
    Effect("Muon in place of SGD", "muon", BASE, "SGD"),
    Effect("images that grow", "progressive-resize", BASE, "full size"),
    Effect("flips that alternate in place of random ones", "device-loader", BASE, "random flips"),
    Effect("cutout", "device-loader", "cutout", BASE),
    Effect("random parts in place of crops", "resized-crop", "parts, scaled back", BASE),
    Effect("a rate that falls", "schedule", BASE, "constant rate"),
    Effect("label smoothing", "README", BASE, "no smoothing"),
    Effect("ghost batch norm", "ghost-batch-norm", "ghost batches", BASE),
    Effect("GELU in place of ReLU", "activation", BASE, "ReLU"),
    Effect("CELU in place of ReLU", "activation", "CELU", "ReLU"),
    Effect("pooling before the norm", "pool-early", BASE, "pooling late"),
    Effect("mirrored view", "views", BASE, BASE, ("flip", ALONE)),
    Effect("six views", "views", BASE, BASE, ("six", ALONE)),
    Effect("two branches in place of a mirrored view", "views", "two branches", BASE, (ALONE, "flip")),
)


def base_config(options: argparse.Namespace) -> TrainConfig:
    """The recipe made small."""
    recipe = with_savings(find_recipe("cifar10"), ("steps",))
    return recipe.replace(
        data=str(options.data), model_args={**recipe.model_args, "width": options.width},
        num_epochs=options.num_epochs, batch_size=options.batch_size, views="none", device=options.device,
        first_size=options.first_size,
        whiten_bias_epochs=options.num_epochs * (recipe.whiten_bias_epochs or 0) / recipe.num_epochs or None,
    )  # fmt: skip


def setting_of(options: argparse.Namespace) -> dict[str, Any]:
    """What runs have to have in common to be compared."""
    names = ("width", "image_size", "first_size", "num_samples", "num_epochs", "batch_size")
    return {name: getattr(options, name) for name in names}


def train_one(config: TrainConfig, dataset: Dataset, row: Row, *, in_views: bool) -> dict[str, Any]:
    """One run; of the base also its accuracy in several views."""
    job, measured = train_in_memory(config.replace(**row.settings), dataset, row.change)
    result = {name: measured[name] for name in (ALONE, "test_loss_nats", "sample_visits", "cpu_seconds")}
    for views in ("flip", "six") if in_views else ():
        result[views] = evaluate(dataclasses.replace(job, config=job.config.replace(views=views)))["test_accuracy"]
    return result


def table_of(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every effect over the seeds that have both of its runs."""
    by_row: dict[str, dict[int, Mapping[str, Any]]] = {}
    for run in runs:
        by_row.setdefault(run["row"], {})[run["seed"]] = run
    table = []
    for effect in EFFECTS:
        having, lacking = by_row.get(effect.having, {}), by_row.get(effect.lacking, {})
        seeds = sorted(having.keys() & lacking.keys())
        if not seeds:
            continue
        with_it, without = effect.judged_by
        points = [100 * (having[seed][with_it] - lacking[seed][without]) for seed in seeds]
        table.append({
            "trick": effect.trick, "card": effect.card, "points": interval(points), "detectable": detectable(points),
            "percent_without": 100 * sum(lacking[seed][without] for seed in seeds) / len(seeds),
        })  # fmt: skip
    return table


def in_words(line: Mapping[str, Any]) -> str:
    """The points of an effect, such as ``+1.25 +- 0.40``."""
    mean, half_width = line["points"]["mean"], line["points"]["half_width"]
    return f"{mean:+.2f}" if half_width is None else f"{mean:+.2f} +- {half_width:.2f}"


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """All runs that are asked for, of which the runs file may have some."""
    base = base_config(options)
    rows = rows_of(base)
    setting = {**setting_of(options), "hardware": hardware_slug()}
    done = [one for one in read_runs(options.runs) if setting.items() <= one.items()]
    known = {(one["row"], one["seed"]) for one in done}
    missing = [
        (seed, name)
        for seed in range(options.seeds)
        for name in rows
        if (name, seed) not in known and name in {*(options.rows or rows), BASE}
    ]
    if not missing:
        return done
    dataset = load_dataset(options.data)
    if options.image_size != dataset.image_shape[1]:
        dataset = scaled(dataset, options.image_size)
    dataset = first_samples(dataset, options.num_samples)
    options.runs.parent.mkdir(parents=True, exist_ok=True)
    for seed, name in missing:
        result = train_one(base.replace(seed=seed), dataset, rows[name], in_views=name == BASE)
        one = {**setting, "row": name, "seed": seed, **result}
        done.append(one)
        with options.runs.open("a") as file:
            file.write(json.dumps(one) + "\n")
        print(f"seed {seed}, {name}: {one[ALONE]:.4f} in {one['cpu_seconds']:.0f} s", flush=True)
    return done


def main() -> None:
    parser = argparse.ArgumentParser(description="What each trick does to accuracy, in one small training.")
    parser.add_argument("--data", default="cifar10", help="as for `scrimp train`")
    parser.add_argument("--width", type=int, default=16, help="of the airbench network; the recipe's is 64")
    parser.add_argument("--image-size", type=int, default=24, help="side that images are scaled to; CIFAR-10's is 32")
    parser.add_argument("--first-size", type=int, default=16, help="side that training starts with")
    parser.add_argument("--num-samples", type=int, default=25_000, help="training images, the first ones")
    parser.add_argument("--num-epochs", type=float, default=2.0)
    parser.add_argument("--batch-size", type=int, default=250)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--rows", nargs="+", help="only these trainings, and the recipe's own")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=RESULTS / "steps_effects_runs.jsonl")
    parser.add_argument("--out", type=Path, default=RESULTS / "steps_effects.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    done = measure(options)
    table = table_of(done)
    for line in table:
        print(f"{line['trick']:46} {in_words(line)}")
    setting = {**setting_of(options), "data": without_home(options.data)}
    alone = interval([100 * one[ALONE] for one in done if one["row"] == BASE])
    result = {"settings": setting, "percent_of_the_recipe": alone, "effects": table}
    write_result(options.out, {**facts(options.threads), **result})


if __name__ == "__main__":
    main()
