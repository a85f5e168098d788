"""What a training step costs as weights leave: the steps of an epoch over the fraction of weights that is left.

ResNet-9 with learned bits on one batch of random images, at several fractions of its channels, beside the plain float
network and one with a single channel per layer. The last is what a step costs whatever the model (loading is not in
it); the "corrected" times are without it. All take turns, step by step, by the process's CPU time on one thread.

With ``--run DIR``, a finished run with ``--compress``, its epochs are counted at these prices: what all its steps take,
beside as many plain ones.

    python benchmarks/bits_epoch_time.py
    python benchmarks/bits_epoch_time.py --width 64 --batch-size 512 --run runs/cifar10-page-001

Source of the correction: Csefalvay and Imber, arXiv 2301.13142.
"""

import argparse
import functools
import itertools
from pathlib import Path
from statistics import median

import torch
from bits_speed import Step, compressed, plain
from environment import RESULTS, facts, interleaved_cpu_seconds, spread, write_result
from torch import Tensor, nn

import scrimp
from scrimp.report.record import read_run
from scrimp.train.models.convnets import resnet9

FRACTIONS = (1.0, 0.8, 0.6, 0.42, 0.3, 0.2)


def shrunk(fraction: float | None, model: nn.Module, images: Tensor) -> float:
    """Leave that fraction of the channels of every layer but the last, or one; the fraction of weights left."""
    layers = list(scrimp.bits.quantized_layers(model).values())
    for layer in layers[:-1]:
        bits, exponent = (tensor.detach().clone() for tensor in layer.quantizer.learned())
        bits[1 if fraction is None else max(1, round(fraction * len(bits))) :] = 0.0
        layer.quantizer.set_(bits, exponent)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.bias.fill_(-0.1)  # behind the ReLU nothing is left of a channel without weights
    report = scrimp.remove_dead_channels_(model, example_inputs=images[:2])
    return report.num_weights_after / report.num_weights_before


def trained_step(fraction: float | None, model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Step, float]:
    """A step of the network with that fraction of its channels, and the fraction of its weights."""
    scrimp.self_compress_(model, images[:2])
    kept = shrunk(fraction, model, images)
    return compressed(None)(model, images, labels), kept


def price(kept: float, times: list[tuple[float, float]]) -> float:
    """Seconds of a step with that fraction of the weights, between the nearest that were measured."""
    for (low, cheap), (high, dear) in itertools.pairwise(times):
        if kept <= high:
            return cheap + (dear - cheap) * max(0.0, kept - low) / (high - low)
    return times[-1][1]


def main() -> None:
    parser = argparse.ArgumentParser(description="Time of a training step over the fraction of weights left.")
    parser.add_argument("--width", type=int, default=16, help="channels of ResNet-9's first stage; 64 is Page's")
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=7, help="steps of each variant that count")
    parser.add_argument("--run", type=Path, help="a finished run whose steps are counted")
    parser.add_argument("--out", type=Path, default=RESULTS / "bits_epoch_time.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)  # noqa: TID251 - a script may
    images = torch.randn(options.batch_size, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(10, (options.batch_size,))
    fresh = functools.partial(resnet9, num_classes=10, in_channels=3, width=options.width)
    steps = {"plain": plain(fresh().to(memory_format=torch.channels_last), images, labels)}
    kept: dict[str, float] = {}
    for fraction in (*FRACTIONS, None):
        name = "one channel per layer" if fraction is None else f"{fraction:g} of the channels"
        model = fresh().to(memory_format=torch.channels_last)
        steps[name], kept[name] = trained_step(fraction, model, images, labels)
    seconds = {name: median(values) for name, values in interleaved_cpu_seconds(steps, options.rounds).items()}
    overhead, start = seconds["one channel per layer"], seconds["1 of the channels"]
    points = [
        {
            "channels": name, "weights_kept_fraction": part, "step_cpu_seconds": seconds[name],
            "ratio_to_plain": seconds[name] / seconds["plain"],
            "corrected_ratio_to_start": (seconds[name] - overhead) / (start - overhead),
        }
        for name, part in kept.items()
    ]  # fmt: skip
    for point in points:
        print(
            f"{point['channels']:24} {100 * point['weights_kept_fraction']:6.2f} % of weights, "
            f"{point['ratio_to_plain']:.3f} of plain, corrected {point['corrected_ratio_to_start']:.3f} of the start"
        )
    result = {
        "plain_step_cpu_seconds": seconds["plain"], "points": points,
        "settings": {"width": options.width, "batch_size": options.batch_size, "rounds": options.rounds},
    }  # fmt: skip
    if options.run is not None:
        times = sorted((part, seconds[name]) for name, part in kept.items())
        left = [point.value for point in read_run(options.run).series("step", "weights_kept_fraction")]
        prices = [price(one, times) / seconds["plain"] for one in left]
        result["run"] = {"weights_kept_fraction": spread(left), "time_to_plain": sum(prices) / len(prices)}
        print(f"all steps of the run: {sum(prices) / len(prices):.3f} of as many plain ones")
    write_result(options.out, {**facts(threads=1), **result})


if __name__ == "__main__":
    main()
