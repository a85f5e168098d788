"""Claim: training on CIFAR-10 takes at most 0.4 GB more memory than the same step on one synthetic batch.

The data set is 0.18 GB as bytes; a float copy of it would be 0.74 GB. Each run is a process of its own:

- ``synthetic``: nothing but the recipe's network, optimizer, loss and precision, stepping on one random batch, with the
  allocator setting of the command line;
- ``cold``: ``scrimp train RECIPE`` with an empty cache, so that it decodes the images, then trains, evaluates on the
  whole test split, saves a checkpoint and writes its page;
- ``warm``: the same again, with the cache that ``cold`` has left. The claim is about this one.

Peaks are the kernel's own (VmHWM of /proc/self/status, so Linux only). How a process divides into anonymous memory
(heap) and file pages (libraries, the memory-mapped cache: the kernel takes these back when memory is short) is sampled
every 20 ms; the peaks of the two need not fall together.

    python benchmarks/memory.py --data path/to/cifar10
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from statistics import median
from typing import Any

from environment import RESULTS, child_environment, facts, spread, without_home, write_result

CLAIM_BYTES = 400_000_000
NUM_SYNTHETIC_STEPS = 5
PARTS = {"peak_bytes": "VmHWM", "anonymous_bytes": "RssAnon", "file_bytes": "RssFile"}


def main() -> None:
    parser = argparse.ArgumentParser(description="Peak memory of training, against the same step on a synthetic batch.")
    parser.add_argument("--recipe", default="cifar10-small")
    parser.add_argument("--data", help="as for `scrimp train`")
    parser.add_argument("--num-epochs", type=float, default=0.2)
    parser.add_argument("--shape", type=int, nargs=3, default=(3, 32, 32), help="of the synthetic images")
    parser.add_argument("--num-classes", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS / "memory.json")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        _child(json.loads(options.child))
        return
    runs = [_measure(options, number) for number in range(options.repeats)]
    typical = {
        kind: {part: median(run[kind][part] for run in runs) for part in PARTS}
        for kind in ("synthetic", "cold", "warm")
    }
    excess = {
        kind: spread([run[kind]["peak_bytes"] - run["synthetic"]["peak_bytes"] for run in runs])
        for kind in ("cold", "warm")
    }
    result = {
        "recipe": options.recipe, "data": without_home(options.data or "by name"),
        "num_epochs": options.num_epochs, "seed": options.seed,
        "typical": typical, "excess_bytes": excess, "claim": f"excess_bytes.warm.median <= {CLAIM_BYTES}",
        "holds": excess["warm"]["median"] <= CLAIM_BYTES, "runs": runs,
    }  # fmt: skip
    for kind in ("cold", "warm"):
        print(f"{kind}: {excess[kind]['median'] / 1e6:+.0f} MB over the synthetic batch")
    write_result(options.out, {**facts(threads=1), **result})


def _measure(options: argparse.Namespace, number: int) -> dict[str, dict[str, int]]:
    base = {"recipe": options.recipe, "seed": options.seed}
    run: dict[str, dict[str, int]] = {}
    with tempfile.TemporaryDirectory() as folder:
        synthetic = {**base, "shape": options.shape, "num_classes": options.num_classes}
        run["synthetic"] = _in_process({"synthetic": synthetic}, folder)
        for kind in ("cold", "warm"):
            words = ["train", options.recipe, "--threads", "1", "--device", "cpu", "--out", f"{folder}/{kind}"]
            words += ["--num-epochs", str(options.num_epochs), "--seed", str(options.seed)]
            words += ["--data", str(options.data)] if options.data else []
            run[kind] = _in_process({"words": words}, folder)
    shown = ", ".join(f"{kind} {part['peak_bytes'] / 1e6:.0f}" for kind, part in run.items())
    print(f"  {number + 1}/{options.repeats}: peak MB: {shown}", flush=True)
    return run


def _in_process(task: dict[str, Any], folder: str) -> dict[str, int]:
    report = Path(folder) / "report.json"
    words = [sys.executable, __file__, "--child", json.dumps({**task, "report": str(report)})]
    environment = {**child_environment(), "OMP_NUM_THREADS": "1", "SCRIMP_CACHE": f"{folder}/cache"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} failed:\n{done.stdout}\n{done.stderr}")
    peaks: dict[str, int] = json.loads(report.read_text())
    report.unlink()
    return peaks


def _child(task: dict[str, Any]) -> None:
    """Do ``task`` in this process and write down its peaks."""
    peaks = dict.fromkeys(PARTS, 0)
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            _take_peaks(peaks)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    if "words" in task:
        from scrimp.cli import main as scrimp_command

        code = scrimp_command(task["words"])
    else:
        code = _train_on_one_batch(**task["synthetic"])
    done.set()
    watcher.join()
    _take_peaks(peaks)
    Path(task["report"]).write_text(json.dumps(peaks))
    raise SystemExit(code)


def _take_peaks(peaks: dict[str, int]) -> None:
    status = Path("/proc/self/status").read_text()
    for part, field in PARTS.items():
        found = re.search(rf"^{field}:\s+(\d+) kB", status, re.MULTILINE)
        assert found is not None, f"/proc/self/status has no {field}"
        peaks[part] = max(peaks[part], int(found[1]) * 1024)


def _train_on_one_batch(recipe: str, seed: int, shape: list[int], num_classes: int) -> int:
    import torch
    import torch.nn.functional as F

    from scrimp.cli.allocator import keep_large_blocks
    from scrimp.steps import whiten_input_
    from scrimp.train.hardware import choose_autocast, seeded
    from scrimp.train.models import ModelFacts, build_model
    from scrimp.train.optimization import build_optimizer
    from scrimp.train.recipes import find_recipe

    keep_large_blocks()
    torch.set_num_threads(1)
    config, device = find_recipe(recipe), torch.device("cpu")
    autocast = choose_autocast(config.precision, device)
    channels, height, width = shape
    with seeded(seed, device):
        sizes = ModelFacts(num_classes=num_classes, in_channels=channels, image_size=height)
        model = build_model(config.model, config.model_args, sizes).to(memory_format=torch.channels_last)
        inputs = torch.randn(config.batch_size, channels, height, width, dtype=autocast or torch.float32)
        targets = torch.randint(0, num_classes, (config.batch_size,))
    if config.whiten:
        whiten_input_(model, inputs.float(), prepend=True)
    inputs = inputs.to(memory_format=torch.channels_last)
    optimizer = build_optimizer(config, model)
    for _ in range(NUM_SYNTHETIC_STEPS):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast is not None):
            loss = F.cross_entropy(model(inputs).float(), targets, label_smoothing=config.label_smoothing)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return 0


if __name__ == "__main__":
    main()
