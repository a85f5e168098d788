"""Claim: savings that are off cost nothing: the loop without them takes the processor time of the loop by hand.

Three segments take turns over the same steps from the same weights: the loop of ``scrimp train`` with every saving off,
the very same again, and the shortest loop that anybody would write. The ratio of the first two shows the noise of the
measurement; that of the first and the third what the seams cost while nothing uses them. (That none of a saving's code
runs in the loop is a test: tests/train/test_off_costs_nothing.py.)

    python benchmarks/savings_off.py
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from environment import RESULTS, facts, spread, write_result
from loop_overhead import assert_same_work, build_job, run_by_hand, run_ours, synthetic_fashion_mnist

from scrimp.cli.allocator import keep_large_blocks
from scrimp.train.hardware import choose_device, seeded
from scrimp.train.recipes import fashion_mnist
from scrimp.train.variants import with_savings

LOOPS = {"off": run_ours, "off again": run_ours, "by hand": run_by_hand}


def main() -> None:
    parser = argparse.ArgumentParser(description="The loop with every saving off against the loop by hand.")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=20, help="timed steps in a segment")
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--width", type=int, default=16, help="of the ResNet-9")
    parser.add_argument("--out", type=Path, default=RESULTS / "savings_off.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_large_blocks()
    config = with_savings(fashion_mnist(), ()).replace(
        model_args={"width": options.width}, batch_size=options.batch_size, evaluate_every=1e6, checkpoint_every=1e6
    )
    device = choose_device("cpu")
    dataset = synthetic_fashion_mnist(options.batch_size * (options.warmup + options.steps + 1), seed=0)
    with seeded(0, device):
        first = build_job(config, dataset, device, None)
    weights = {name: tensor.clone() for name, tensor in first.model.state_dict().items()}
    rounds: list[dict[str, float]] = []
    names = list(LOOPS)
    for number in range(-1, options.rounds):  # the first round warms up
        jobs, took = {}, {}
        for name in (*names[number % 3 :], *names[: number % 3]):  # each is first in turn
            with seeded(0, device):
                jobs[name] = build_job(config, dataset, device, weights)
                took[name] = LOOPS[name](jobs[name], options.warmup, options.steps).cpu
        assert_same_work(jobs["off"], jobs["by hand"])
        if number >= 0:
            rounds.append(took)
    result: dict[str, Any] = {
        **facts(threads=1), "batch_size": options.batch_size, "width": options.width, "steps": options.steps,
        "off_to_off_again": spread([one["off"] / one["off again"] for one in rounds]),
        "off_to_by_hand": spread([one["off"] / one["by hand"] for one in rounds]),
        "cpu_seconds_per_step": {name: spread([one[name] / options.steps for one in rounds]) for name in names},
    }  # fmt: skip
    for name in ("off_to_off_again", "off_to_by_hand"):
        ratio = result[name]
        print(f"{name}: {ratio['median']:.4f} (quartiles {ratio['quartile_1']:.4f} to {ratio['quartile_3']:.4f})")
    write_result(options.out, result)


if __name__ == "__main__":
    main()
