"""What each trick of ``scrimp.steps`` costs or saves per training step: its time beside the same step without it.

ResNet-9 with pooling where Page first had it (after the activation), float32, channels_last, one batch of random
images, forward, backward and optimizer. All variants take turns, step by step, so that a busy machine slows all of them
alike; the time is the process's CPU time, on one thread. Says nothing about accuracy or how many steps are needed.

    python benchmarks/steps_cost.py
    python benchmarks/steps_cost.py --width 64 --rounds 30
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from environment import RESULTS, interleaved_cpu_seconds, spread, write_step_ratios
from torch import Tensor, nn
from torch.nn import functional

import scrimp
from scrimp import steps
from scrimp.train.models.convnets import airbench, resnet9

Step = Callable[[], None]


def surgery(change: Callable[[nn.Module], object]) -> Callable[[nn.Module, Tensor, Tensor], Step]:
    """A variant that differs by a change of the model, trained with SGD."""

    def build(model: nn.Module, images: Tensor, labels: Tensor) -> Step:
        change(model)
        model.to(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(scrimp.param_groups(model, lr=1e-4), momentum=0.9, nesterov=True)
        return training_step(model, optimizer, images, labels)

    return build


def training_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    forward: Callable[[nn.Module, Tensor], Tensor] = lambda model, images: model(images),
    after: Callable[[], object] = lambda: None,
) -> Step:
    def step() -> None:
        functional.cross_entropy(forward(model, images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        after()

    return step


def with_average(model: nn.Module, images: Tensor, labels: Tensor) -> Step:
    model.to(memory_format=torch.channels_last)
    average = steps.WeightAverage(model, decay=0.99, every=1)  # each step, so that every measurement has one
    optimizer = torch.optim.SGD(scrimp.param_groups(model, lr=1e-4), momentum=0.9, nesterov=True)
    return training_step(model, optimizer, images, labels, after=average.update)


def with_muon(model: nn.Module, images: Tensor, labels: Tensor) -> Step:
    model.to(memory_format=torch.channels_last)
    filters, rest = steps.split_filters(model, scrimp.param_groups(model, lr=1e-4))
    auxiliary = torch.optim.SGD(rest, momentum=0.85, nesterov=True)
    optimizer = steps.Muon(filters, lr=1e-4, momentum=0.6, num_iterations=3, renormalize=True, auxiliary=auxiliary)
    return training_step(model, optimizer, images, labels)


def with_two_branches(model: nn.Module, images: Tensor, labels: Tensor) -> Step:
    model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(scrimp.param_groups(model, lr=1e-4), momentum=0.9, nesterov=True)
    return training_step(model, optimizer, images, labels, forward=steps.two_branch)


def with_small_images(model: nn.Module, images: Tensor, labels: Tensor) -> Step:
    model.to(memory_format=torch.channels_last)
    shrink = steps.ProgressiveResize(24)
    optimizer = torch.optim.SGD(scrimp.param_groups(model, lr=1e-4), momentum=0.9, nesterov=True)
    return training_step(model, optimizer, images, labels, forward=lambda model, images: model(shrink(images, 0.0)))


def with_whitening_bias(*, is_frozen: bool) -> Callable[[nn.Module, Tensor, Tensor], Step]:
    """The airbench network in place of ResNet-9: the bias behind its whitening filters is trained, or no more."""

    def build(model: nn.Module, images: Tensor, labels: Tensor) -> Step:
        width = model[0][0].out_channels  # type: ignore[index]
        whitened = airbench(num_classes=10, in_channels=3, width=width).to(memory_format=torch.channels_last)
        conv = steps.whiten_input_(whitened, torch.randn(64, 3, 32, 32))
        optimizer = torch.optim.SGD(scrimp.param_groups(whitened, lr=1e-4), momentum=0.9, nesterov=True)
        if is_frozen:
            steps.EarlyFreeze(optimizer, [conv.bias], num_steps=0, stop_backward=True)
        return training_step(whitened, optimizer, images, labels)

    return build


TRAINED, FROZEN = "airbench, whitening bias trained", "airbench, whitening bias frozen"
VARIANTS: dict[str, Callable[[nn.Module, Tensor, Tensor], Step]] = {
    "plain": surgery(lambda _model: None),
    "plain again": surgery(lambda _model: None),
    "pool before the activation": surgery(steps.pool_early_),
    "pool before the norm": surgery(lambda model: steps.pool_early_(model, before_norm=True)),
    "CELU": surgery(lambda model: steps.replace_activation_(model, lambda _old: nn.CELU(0.3))),
    "GELU": surgery(lambda model: steps.replace_activation_(model, lambda _old: nn.GELU())),
    "ghost batch norm": surgery(lambda model: steps.ghost_batch_norm_(model, group_size=32)),
    "frozen scales": surgery(steps.freeze_bn_scale_),
    "whitened input": surgery(lambda model: steps.whiten_input_(model, torch.randn(64, 3, 32, 32), prepend=True)),
    "weight average, each step": with_average,
    "Muon": with_muon,
    "two branches": with_two_branches,
    "images of 24 pixels": with_small_images,
    TRAINED: with_whitening_bias(is_frozen=False),
    FROZEN: with_whitening_bias(is_frozen=True),
}


def measure(width: int, batch_size: int, num_rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each variant's steps, round by round; the first two rounds do not count."""
    images = torch.randn(batch_size, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(10, (batch_size,))
    ready = {
        name: build(resnet9(num_classes=10, in_channels=3, width=width), images, labels)
        for name, build in VARIANTS.items()
    }
    return interleaved_cpu_seconds(ready, num_rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description="Time of a training step with each trick, beside one without it.")
    parser.add_argument("--width", type=int, default=32, help="channels of ResNet-9's first stage; 64 is Page's")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=15, help="steps of each variant that count")
    parser.add_argument("--out", type=Path, default=RESULTS / "steps_cost.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)  # noqa: TID251 - a script may
    seconds = measure(options.width, options.batch_size, options.rounds)
    pair = {name: seconds.pop(name) for name in (TRAINED, FROZEN)}
    to_trained = spread([one / other for one, other in zip(pair[FROZEN], pair[TRAINED], strict=True)])
    print(f"{FROZEN:28} {to_trained['median']:.3f} of trained")
    settings = {"width": options.width, "batch_size": options.batch_size, "dtype": "float32"}
    write_step_ratios(options.out, seconds, settings, frozen_to_trained_whitening_bias=to_trained)


if __name__ == "__main__":
    main()
