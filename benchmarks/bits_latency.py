"""Claim: with 18 % of the weights left, inference takes at most half the time; taking channels out costs a few steps.

ResNet-9 with learned bits loses channels in every layer, at random; then the same network before and after is timed
on images of 32 x 32: in torch (the plain model, channels_last, no gradients) and in onnxruntime (the exported float32
graph), one thread each. Before and after take turns, pass by pass, so that a busy machine slows both alike; ``before
again`` is the control. Times are the process's CPU time. Nothing is trained: outputs are those of random weights, and
that they stay is tested elsewhere (``tests/bits/test_removal.py``).

The time of one removal is set beside a training step of the same model at the same moment, with what it leaves alone
(deep copies, the trial, the slicing of Adam's state) in it.

    python benchmarks/bits_latency.py
"""

import argparse
import copy
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from environment import RESULTS, facts, interleaved_cpu_seconds, ratios_to_plain, spread, write_result
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

import scrimp
from scrimp.train.models.convnets import resnet9

Run = Callable[[], None]


def kill_(model: nn.Module, keep: float, draws: torch.Generator) -> None:
    """Zero bits for all but ``keep`` of the channels of every layer but the last, and norms that leave nothing."""
    layers = scrimp.bits.quantized_layers(model)
    alive: dict[int, Tensor] = {}
    with torch.no_grad():
        for name, layer in layers.items():
            if name == list(layers)[-1]:
                continue
            width = len(layer.bits)
            # the same channels in layers of one width, because those that are added have to go together
            alive.setdefault(width, torch.randperm(width, generator=draws)[: max(1, round(keep * width))])
            dead = torch.ones(width, dtype=torch.bool)
            dead[alive[width]] = False
            bits, exponent = layer.quantizer.learned()
            layer.quantizer.set_(torch.where(dead, 0.0, bits), exponent)
            for module in model.modules():
                if isinstance(module, _BatchNorm) and module.num_features == width:
                    module.bias[dead], module.running_mean[dead] = -0.1, 0.0


def in_torch(model: nn.Module, images: Tensor) -> Run:
    plain = scrimp.bits.plain_copy(model).eval().to(memory_format=torch.channels_last)
    images = images.to(memory_format=torch.channels_last)

    @torch.no_grad()
    def run() -> None:
        plain(images)

    return run


def in_onnxruntime(model: nn.Module, images: Tensor) -> Run:
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        scrimp.export(model.eval(), path, format="onnx", example_inputs=images[:2])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run() -> None:
        session.run(None, {name: images.numpy()})

    return run


def latency(before: nn.Module, after: nn.Module, batch_size: int, num_rounds: int) -> dict[str, Any]:
    images = torch.randn(batch_size, 3, 32, 32)
    found = {}
    for engine, build in (("torch", in_torch), ("onnxruntime", in_onnxruntime)):
        runs = {"plain": build(before, images), "before again": build(before, images), "after": build(after, images)}
        seconds = interleaved_cpu_seconds(runs, num_rounds)
        ratios = ratios_to_plain(seconds)
        found[engine] = {
            "before_cpu_seconds": spread(seconds["plain"]), "after_to_before": ratios["after"],
            "before_again_to_before": ratios["before again"],
        }  # fmt: skip
        print(f"batch {batch_size:4} {engine:12} after/before {ratios['after']['median']:.3f}", flush=True)
    return found


def removal(model: nn.Module, keep: float, batch_size: int, num_rounds: int) -> dict[str, Any]:
    """CPU seconds of a training step, and of a removal after it, on fresh copies."""
    images, labels = torch.randn(batch_size, 3, 32, 32), torch.randint(10, (batch_size,))
    steps, removals = [], []
    for number in range(num_rounds):
        own = copy.deepcopy(model).train()
        scrimp.bits.channel_graph(own, images[:2])
        optimizer = torch.optim.Adam(scrimp.bits.param_groups(own, lr=1e-4))
        for _ in range(2):
            start = time.process_time()
            (functional.cross_entropy(own(images), labels) + 1e-3 * scrimp.size_penalty(own)).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step = time.process_time() - start
        kill_(own, keep, torch.Generator().manual_seed(number))
        start = time.process_time()
        report = scrimp.remove_dead_channels_(own, optimizer)
        removals.append(time.process_time() - start)
        steps.append(step)
        assert report.num_channels > 0
    ratios = [one / other for one, other in zip(removals, steps, strict=True)]
    print(f"a removal takes {spread(ratios)['median']:.3f} steps of {batch_size}", flush=True)
    return {
        "step_cpu_seconds": spread(steps), "removal_cpu_seconds": spread(removals), "removal_in_steps": spread(ratios),
        "num_channels_removed": report.num_channels,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="Inference before and after a removal, and what the removal takes.")
    parser.add_argument("--width", type=int, default=32, help="channels of ResNet-9's first stage; 64 is Page's")
    parser.add_argument("--keep", type=float, default=0.42, help="of the channels of each layer")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--train-batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=15, help="passes that count")
    parser.add_argument("--out", type=Path, default=RESULTS / "bits_latency.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)  # noqa: TID251 - a script may
    before = resnet9(num_classes=10, in_channels=3, width=options.width)
    example = torch.randn(2, 3, 32, 32)
    scrimp.self_compress_(before, example)
    event = removal(before, options.keep, options.train_batch_size, max(1, options.rounds // 5))
    after = copy.deepcopy(before)
    kill_(after, options.keep, torch.Generator().manual_seed(0))
    report = scrimp.remove_dead_channels_(after, example_inputs=example)
    kept = report.num_weights_after / report.num_weights_before
    print(f"{kept:.3f} of the weights are left", flush=True)
    result = {
        "weights_kept_fraction": kept, "removal": event,
        "latency_by_batch_size": {
            str(size): latency(before, after, size, options.rounds) for size in options.batch_sizes
        },
        "settings": {
            "width": options.width, "keep": options.keep, "dtype": "float32",
            "train_batch_size": options.train_batch_size,
        },
    }  # fmt: skip
    write_result(options.out, {**facts(threads=1), **result})


if __name__ == "__main__":
    main()
