"""Claims: the cifar10 recipe beats three plainer ways of training, by these factors.

- ``plain_to_94``, at least 5: time to 94 % on CIFAR-10 of a plain ResNet-9 loop (float32, NCHW, a DataLoader with
  transforms image by image, 24 epochs as in D. Page's baseline) over that of the recipe. Time is examples times seconds
  per example, measured here in each phase of the recipe (the sizes that its images have, before and after the bias
  behind the whitening filters is frozen), plus the evaluation at the end, the recipe's with its six views. That both
  reach 94 % in their epochs is not measured here; see ``steps_accuracy.py`` and ``steps_ladder.py``.
- ``float32_nchw``, at least 2.2: the recipe's own network, data and optimizer, in float32 and NCHW, over the recipe's
  loop, all with images of full size.
- ``by_hand``, at least 1.0: the same network and optimizer in the shortest hand-written loop with bfloat16 and
  channels_last, on a data set in memory, cropped and flipped batch by batch, over the recipe's loop, which also crops
  and flips each image by itself, averages weights and keeps a record. Muon by hand is the published one, kernel by
  kernel. By hand all is trained throughout; ``by_hand_all_trained`` has the recipe's loop do so as well.

Segments of all four alternate. Ratios of CPU time per example are within a round; on a quiet machine the ratios of wall
time are those to quote, with ``--threads 2``. The DataLoader has no worker processes, so that its time is counted.
Images are noise in the shape of CIFAR-10: the time of a step does not depend on what they show.

    python benchmarks/steps_throughput.py
    python benchmarks/steps_throughput.py --threads 2 --batch-size 512 --rounds 9
"""

import argparse
import copy
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from environment import RESULTS, facts, spread, write_result
from loop_overhead import Seconds, run_ours
from torch import Tensor, nn

from scrimp.cli.allocator import keep_large_blocks
from scrimp.steps import Normalize
from scrimp.train.config import TrainConfig
from scrimp.train.data import Dataset
from scrimp.train.data.dataset import Split
from scrimp.train.evaluation import views_of
from scrimp.train.hardware import choose_autocast, seeded
from scrimp.train.job import Job, Seams
from scrimp.train.models.convnets import resnet9
from scrimp.train.page_ladder import page_rung
from scrimp.train.recipes import find_recipe
from scrimp.train.run import _build_job, shrink_of

CPU = torch.device("cpu")
NUM_TRAIN, NUM_TEST = 50_000, 10_000
LEAST = {"plain_to_94": 5.0, "float32_nchw": 2.2, "by_hand": 1.0}


def synthetic_cifar10(num_samples: int, seed: int = 0) -> Dataset:
    """Noise in the shape of CIFAR-10, channels last as it is loaded."""
    draw = torch.Generator().manual_seed(seed)

    def split(size: int) -> Split:
        images = torch.randint(0, 256, (size, 3, 32, 32), dtype=torch.uint8, generator=draw)
        return Split(images.to(memory_format=torch.channels_last), torch.randint(0, 10, (size,), generator=draw))

    return Dataset("synthetic", "images", split(num_samples), split(500), tuple("0123456789"), "synthetic", "")


class PlainImages(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """The usual data set: each image is padded, cropped, flipped and normalised when it is asked for."""

    def __init__(self, dataset: Dataset) -> None:
        assert dataset.train.targets is not None
        self._images, self._labels = dataset.train.inputs.contiguous(), dataset.train.targets
        self._mean = torch.tensor(dataset.mean).view(-1, 1, 1)
        self._std = torch.tensor(dataset.std).view(-1, 1, 1)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        image = F.pad(self._images[number].float() / 255, (4, 4, 4, 4), mode="reflect")
        top, left = random.randint(0, 8), random.randint(0, 8)
        image = image[:, top : top + 32, left : left + 32]
        if random.random() < 0.5:
            image = image.flip(2)
        return (image - self._mean) / self._std, int(self._labels[number])


def plain_batches(dataset: Dataset, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches of the usual DataLoader."""
    loader = torch.utils.data.DataLoader(PlainImages(dataset), batch_size, shuffle=True, drop_last=True)
    while True:
        yield from loader


def device_batches(dataset: Dataset, batch_size: int, *, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches of a data set in memory, in the way one writes it down: one crop and one flip for a batch."""
    nchw = dtype == torch.float32
    images = Normalize(dataset.mean, dataset.std, dtype=dtype, channels_last=not nchw).apply(dataset.train.inputs)
    padded = F.pad(images, (2, 2, 2, 2), mode="reflect")
    padded = padded.contiguous() if nchw else padded.contiguous(memory_format=torch.channels_last)
    labels = dataset.train.targets
    assert labels is not None
    while True:
        order = torch.randperm(len(images))
        for rows in order.split(batch_size)[: len(images) // batch_size]:
            top, left = random.randint(0, 4), random.randint(0, 4)
            batch = padded[rows][:, :, top : top + 32, left : left + 32]
            yield (batch.flip(3) if random.random() < 0.5 else batch), labels[rows]


class MuonByHand:
    """The published Muon in plain torch, kernel by kernel, with SGD for all other parameters."""

    def __init__(self, parameters: Sequence[nn.Parameter], lr: float = 1e-3, momentum: float = 0.6) -> None:
        self._filters = [p for p in parameters if p.dim() == 4]
        self._momenta = [torch.zeros_like(p) for p in self._filters]
        self._lr, self._momentum = lr, momentum
        self._sgd = torch.optim.SGD([p for p in parameters if p.dim() < 4], lr=lr, momentum=0.85, nesterov=True)

    @torch.no_grad()
    def step(self) -> None:
        for filters, momentum in zip(self._filters, self._momenta, strict=True):
            assert filters.grad is not None
            momentum.mul_(self._momentum).add_(filters.grad)
            direction = filters.grad.add(momentum, alpha=self._momentum).reshape(len(filters), -1)
            filters.mul_(len(filters) ** 0.5 / filters.norm())
            filters.add_(self._orthogonal(direction).view(filters.shape), alpha=-self._lr)
        self._sgd.step()

    @staticmethod
    def _orthogonal(matrix: Tensor) -> Tensor:
        x = matrix.bfloat16()
        is_tall = len(x) > x.shape[1]
        x = (x.T if is_tall else x) / (x.norm() + 1e-7)
        for _ in range(3):
            gram = x @ x.T
            x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
        return x.T if is_tall else x

    def zero_grad(self) -> None:
        for filters in self._filters:
            filters.grad = None
        self._sgd.zero_grad()


def run_by_hand(
    model: nn.Module, batches: Iterator[tuple[Tensor, Tensor]], autocast: torch.dtype | None, num_steps: int,
    *, muon: bool = False,
) -> Seconds:  # fmt: skip
    """Training steps with torch alone; one more step before does not count."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    sgd = torch.optim.SGD(parameters, lr=1e-3, momentum=0.9, nesterov=True)
    optimizer = MuonByHand(parameters) if muon else sgd
    model.train()
    before = Seconds.now(CPU)
    for step in range(num_steps + 1):
        if step == 1:
            before = Seconds.now(CPU)
        images, labels = next(batches)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast is not None):
            loss = F.cross_entropy(model(images).float(), labels, label_smoothing=0.2)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return Seconds.now(CPU).since(before)


def forward_seconds(model: nn.Module, images: Tensor, autocast: torch.dtype | None, num_views: int) -> Seconds:
    """Evaluation of one batch."""
    model.eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast is not None):
        before = Seconds.now(CPU)
        for _ in range(num_views):
            model(images)
    return Seconds.now(CPU).since(before)


def build(config: TrainConfig, dataset: Dataset, autocast: torch.dtype | None) -> Job:
    with seeded(0, CPU):
        return _build_job(config, dataset, CPU, autocast, Seams())


def per_example(seconds: Seconds, num_examples: int) -> dict[str, float]:
    return {"cpu": seconds.cpu / num_examples, "wall": seconds.wall / num_examples}


def phases_of(config: TrainConfig, dataset: Dataset) -> dict[tuple[int, bool], float]:
    """Side of the images and whether the whitening's bias is frozen, each pair with its share of the training."""
    full, num_parts = min(dataset.image_shape[1:]), 1000
    shrink = shrink_of(config, dataset)
    free = config.num_epochs if config.whiten_bias_epochs is None else config.whiten_bias_epochs
    parts = [(part + 0.5) / num_parts for part in range(num_parts)]
    phases = [(shrink.size_at(at, full) if shrink else full, at * config.num_epochs >= free) for at in parts]
    return {phase: phases.count(phase) / num_parts for phase in sorted(set(phases))}


def named(phase: tuple[int, bool]) -> str:
    """A phase as it is called in the result."""
    return f"recipe_{phase[0]}{'_frozen' if phase[1] else ''}"


def in_phase(recipe: TrainConfig, phase: tuple[int, bool], dataset: Dataset) -> TrainConfig:
    """The recipe in this phase all the time."""
    side, is_frozen = phase
    size = None if side == min(dataset.image_shape[1:]) else side
    return recipe.replace(first_size=size, last_size=size, whiten_bias_epochs=1e-9 if is_frozen else None)


def measure(options: argparse.Namespace) -> list[dict[str, dict[str, float]]]:
    """Seconds per example of each variant, round by round; the first round does not count."""
    dataset = synthetic_cifar10(options.samples)
    autocast = choose_autocast("auto", CPU)
    recipe = find_recipe(options.recipe).replace(
        batch_size=options.batch_size, evaluate_every=1e6, checkpoint_every=1e6, num_epochs=1000,
        model_args={**find_recipe(options.recipe).model_args, **({"width": options.width} if options.width else {})},
    )  # fmt: skip
    full = min(dataset.image_shape[1:])
    phases = {*phases_of(find_recipe(options.recipe), dataset), (full, False)}
    job = build(recipe, dataset, autocast)
    hand = copy.deepcopy(job.model)
    nchw = copy.deepcopy(job.model).to(memory_format=torch.contiguous_format)
    page = resnet9(num_classes=10, in_channels=3, width=options.width or 64)
    hand_batches, nchw_batches, page_batches = (
        device_batches(dataset, options.batch_size, dtype=autocast or torch.float32),
        device_batches(dataset, options.batch_size, dtype=torch.float32),
        plain_batches(dataset, options.batch_size),
    )
    shown = torch.randn(options.batch_size, 3, 32, 32)
    shown_last = shown.to(memory_format=torch.channels_last)
    num_views, batch_size, muon = len(views_of(recipe)[0]), options.batch_size, recipe.optimizer == "muon"
    num_steps, count = options.steps, options.steps * options.batch_size
    rounds = []
    for number in range(options.rounds + 1):
        one = {}
        for phase in sorted(phases):  # the real loop trains a job once
            job = build(in_phase(recipe, phase, dataset), dataset, autocast)
            one[named(phase)] = per_example(run_ours(job, 1, num_steps), count)
        one |= {
            "by_hand": per_example(run_by_hand(hand, hand_batches, autocast, num_steps, muon=muon), count),
            "float32_nchw": per_example(run_by_hand(nchw, nchw_batches, None, num_steps, muon=muon), count),
            "plain": per_example(run_by_hand(page, page_batches, None, num_steps), count),
            "recipe_evaluation": per_example(
                forward_seconds(hand, shown_last, autocast, num_views), options.batch_size
            ),
            "plain_evaluation": per_example(forward_seconds(page, shown, None, 1), batch_size),
        }
        if number:
            rounds.append(one)
    return rounds


def ratios_of(
    one: dict[str, dict[str, float]], clock: str, epochs: tuple[float, float], phases: dict[tuple[int, bool], float]
) -> dict[str, float]:
    """The three claims from one round, and the last with the same work."""
    seconds = {name: values[clock] for name, values in one.items()}
    trained = sum(share * seconds[named(phase)] for phase, share in phases.items())
    full = max(side for side, _ in phases)
    at_full = {phase: share for phase, share in phases.items() if phase[0] == full}
    recipe = sum(share * seconds[named(phase)] for phase, share in at_full.items()) / sum(at_full.values())
    ours = epochs[0] * NUM_TRAIN * trained + NUM_TEST * seconds["recipe_evaluation"]
    plain = epochs[1] * NUM_TRAIN * seconds["plain"] + NUM_TEST * seconds["plain_evaluation"]
    return {
        "plain_to_94": plain / ours,
        "float32_nchw": seconds["float32_nchw"] / recipe,
        "by_hand": seconds["by_hand"] / recipe,
        "by_hand_all_trained": seconds["by_hand"] / seconds[named((full, False))],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="The cifar10 recipe's speed against plainer loops.")
    parser.add_argument("--recipe", default="cifar10")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--samples", type=int, default=5000, help="in the synthetic data set")
    parser.add_argument("--steps", type=int, default=2, help="in a segment, after one that does not count")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--width", type=int, help="of both networks; their own if left out")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS / "steps_throughput.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_large_blocks()
    random.seed(0)
    started = time.perf_counter()
    rounds = measure(options)
    epochs = (find_recipe(options.recipe).num_epochs, page_rung(0).num_epochs)
    phases = phases_of(find_recipe(options.recipe), synthetic_cifar10(1))
    names = ("cpu", "wall")
    result: dict[str, Any] = {
        "seconds_per_example": {
            clock: {name: spread([one[name][clock] for one in rounds]) for name in rounds[0]} for clock in names
        },
        "epochs_to_94": {"recipe": epochs[0], "plain": epochs[1]},
        "share_of_training_by_phase": {named(phase): share for phase, share in phases.items()},
        "ratios": {}, "at_least": LEAST,
        "settings": {key: getattr(options, key) for key in ("recipe", "batch_size", "width")},
        "benchmark_seconds": time.perf_counter() - started,
    }  # fmt: skip
    for clock in names:
        of_rounds = [ratios_of(one, clock, epochs, phases) for one in rounds]
        result["ratios"][clock] = {name: spread([one[name] for one in of_rounds]) for name in of_rounds[0]}
    for name, ratio in result["ratios"]["cpu"].items():
        wall, claim = result["ratios"]["wall"][name], f" (claim: at least {LEAST[name]})" if name in LEAST else ""
        print(f"{name:20} {ratio['median']:.2f} in CPU time, {wall['median']:.2f} in wall time{claim}")
    result["holds"] = {name: result["ratios"]["cpu"][name]["median"] >= least for name, least in LEAST.items()}
    write_result(options.out, {**facts(threads=options.threads), **result})


if __name__ == "__main__":
    main()
