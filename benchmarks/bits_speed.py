"""What learning bits adds to the time of a training step: the same step with and without the quantiser.

ResNet-9 on one batch of random images of 32 x 32, channels_last: forward, cross-entropy, size penalty, backward, SGD.
Both variants, and the plain one a second time as control, take turns step by step, so that a busy machine slows all of
them alike; the time is the process's CPU time on one thread. No channel is removed: that is where time is saved, and it
is measured by ``bits_epoch_time.py``.

    python benchmarks/bits_speed.py
    python benchmarks/bits_speed.py --width 64 --batch-size 512
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from environment import RESULTS, interleaved_cpu_seconds, write_step_ratios
from torch import Tensor, nn
from torch.nn import functional

import scrimp
from scrimp.cli.allocator import keep_large_blocks
from scrimp.train.models.convnets import resnet9

Step = Callable[[], None]


def plain(model: nn.Module, images: Tensor, labels: Tensor) -> Step:
    optimizer = torch.optim.SGD(scrimp.param_groups(model, lr=1e-4), momentum=0.9, nesterov=True)

    def step() -> None:
        functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def compressed(quantizer: type[scrimp.bits.Quantizer] | None) -> Callable[[nn.Module, Tensor, Tensor], Step]:
    """``None`` for a model that is quantised already."""

    def build(model: nn.Module, images: Tensor, labels: Tensor) -> Step:
        if quantizer is not None:
            scrimp.self_compress_(model, images[:2], quantizer=quantizer)
        groups = scrimp.bits.param_groups(model, lr=1e-4, optimizer=torch.optim.SGD)
        optimizer = torch.optim.SGD(groups, momentum=0.9, nesterov=True)

        def step() -> None:
            loss = functional.cross_entropy(model(images), labels) + 1e-3 * scrimp.size_penalty(model)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    return build


VARIANTS: dict[str, Callable[[nn.Module, Tensor, Tensor], Step]] = {
    "plain": plain,
    "plain again": plain,
    "bits and range": compressed(scrimp.bits.BitsRange),
    "bits and exponent": compressed(scrimp.bits.BitsExponent),
    "step and range": compressed(scrimp.bits.StepRange),
}


def measure(width: int, batch_size: int, num_rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each variant's steps, round by round; the first two rounds do not count."""
    images = torch.randn(batch_size, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(10, (batch_size,))
    ready = {}
    for name, build in VARIANTS.items():
        model = resnet9(num_classes=10, in_channels=3, width=width).to(memory_format=torch.channels_last)
        ready[name] = build(model, images, labels)
    return interleaved_cpu_seconds(ready, num_rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description="Time of a training step with learned bits, beside one without.")
    parser.add_argument("--width", type=int, default=16, help="channels of ResNet-9's first stage; 64 is Page's")
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=15, help="steps of each variant that count")
    parser.add_argument("--out", type=Path, default=RESULTS / "bits_speed.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_large_blocks()  # as `scrimp train` does; without it variants differ by the pages that they happen to fault in
    torch.manual_seed(0)  # noqa: TID251 - a script may
    seconds = measure(options.width, options.batch_size, options.rounds)
    settings = {"width": options.width, "batch_size": options.batch_size, "dtype": "float32"}
    write_step_ratios(options.out, seconds, settings)


if __name__ == "__main__":
    main()
