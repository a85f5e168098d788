"""Claim: training goes on from the history of checkpoints as if it had been in memory, at many times fewer bytes.

A run saves a checkpoint every ``--every`` steps, into a store without exact copies, and goes on from what was stored:
once (after the last of ``--saves`` checkpoints, so through the whole chain) or at every one of them (``--plan each``).
Its losses are compared, batch by batch, with those of the run that never stopped. Rows: our codecs, the paper's with
and without its flaw and its parts, values on a uniform grid, every bit (whose difference has to be exactly 0), and
weights without the optimizer's state.

All rows share the run that never stopped. With ``--plan last`` they share its states, too: it is recorded once, bit by
bit, and a row costs its encoding and ``--then`` steps. ``--work FOLDER`` keeps the recording for another day. Each
(setting, plan, codec, seed) is one line of the runs file; what is there is skipped, so the script can be stopped
and started again. Ratios are to the whole state, weights and moments, whatever a row stores of it.

    python benchmarks/checkpoints_resume.py --settings text-0.95 text-0.999 text-muon --data-root path/to/data
    python benchmarks/checkpoints_resume.py --settings cifar10 --model-args width=16 --data-root path/to/data
    python benchmarks/checkpoints_resume.py --plan each --saves 10 --every 60 --then 60 --settings text-0.95
    python benchmarks/checkpoints_resume.py --settings text-0.999 --model-args depth=6 width=384 --every 300 --saves 2
    python benchmarks/checkpoints_resume.py --settings vit --every 300 --saves 2 --then 80 --data-root path/to/data
"""

import argparse
import functools
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from environment import RESULTS, facts, hardware_slug, read_runs, write_result
from torch import nn
from torch.optim import Optimizer
from value_quantiser import QuantisedValues

from scrimp._core.param_groups import no_decay_rule, param_groups
from scrimp.checkpoints import Bound, CheckpointStore, Codec, ExCP, ExCPReference, Lossless, Residual
from scrimp.checkpoints.reports import by_role
from scrimp.steps import Muon, freeze_bn_scale_, split_filters
from scrimp.testing import resume_equivalence
from scrimp.train.config import TrainConfig
from scrimp.train.data import load_dataset
from scrimp.train.models import ModelFacts, build_model
from scrimp.train.optimization import build_optimizer, learning_rate_factor, set_learning_rate
from scrimp.train.recipes import find_recipe
from scrimp.train.task import Task, build_loaders


def configs(data_root: Path | None) -> dict[str, TrainConfig]:
    """The settings by name."""
    text, cifar, digits = find_recipe("text"), find_recipe("cifar10-small"), find_recipe("digits")
    vit = TrainConfig(
        recipe="vit", data="cifar10", model="vit",
        model_args={"patch_size": 8, "width": 384, "depth": 6, "num_heads": 6},  # 10.7 million parameters
        crop_padding=2, flip="random", num_epochs=9, batch_size=32, optimizer="adamw", learning_rate=5e-4,
        weight_decay=0.05, clip_norm=1.0, warmup=0.1, label_smoothing=0.1,
    )  # fmt: skip
    if data_root is not None:
        text = text.replace(data=str(data_root / "text"))
        cifar, vit = (config.replace(data=str(data_root / "cifar10")) for config in (cifar, vit))
    muon = text.replace(optimizer="muon", muon_learning_rate=0.02, muon_momentum=0.95, beta2=0.95)
    return {
        "text-0.95": text.replace(beta2=0.95),
        "text-0.999": text.replace(beta2=0.999),
        "text-muon": muon,
        "cifar10": cifar.replace(whiten=False, lookahead=False),
        "vit": vit,
        "digits": digits,
    }


def optimizer_of(config: TrainConfig, model: nn.Module) -> Optimizer:
    """As the recipe's; Muon for the matrices of a transformer's blocks has AdamW beside it, for all else."""
    if config.optimizer != "muon" or config.model != "gpt":
        return build_optimizer(config, model)
    groups = param_groups(
        model, lr=config.learning_rate, weight_decay=config.weight_decay, rules=[no_decay_rule()],
    )  # fmt: skip
    matrices, rest = split_filters(model, groups, lambda name, module: "blocks" in name and module.weight.dim() == 2)
    adamw = torch.optim.AdamW(rest, betas=(config.momentum, config.beta2))
    return Muon(matrices, lr=config.muon_learning_rate, momentum=config.muon_momentum, auxiliary=adamw)


@dataclass(frozen=True)
class Row:
    """A codec, and whether the optimizer's state is stored."""

    codec: Codec
    weights_only: bool = False


ROWS: dict[str, Row] = {
    "lossless": Row(Lossless()),
    "residual": Row(Residual()),
    "residual, steps alike": Row(Residual(steep_from=None)),
    "residual, half the step": Row(Residual(error=Bound.of_movement(0.5))),
    "residual small": Row(Residual.small()),
    "ExCP as published": Row(ExCP(half_codebook=True)),
    "ExCP, float32 centers": Row(ExCP()),
    "ExCP without residual": Row(ExCP(reference=ExCPReference.NONE)),
    "ExCP without shrinking": Row(ExCP(shrink=False)),
    "ExCP without codebook": Row(ExCP(num_bits=None)),
    "ExCP at its cap": Row(ExCP(alpha=1e3)),
    "uniform values, 8 bits": Row(QuantisedValues(8)),
    "uniform values, 6 bits": Row(QuantisedValues(6)),
    "weights only": Row(Lossless(), weights_only=True),
}


class Training:
    """A recipe's run, batch by batch: the same number is always the same batch."""

    def __init__(self, config: TrainConfig, dataset: Any, seed: int, num_steps: int) -> None:
        self._config, self._num_steps = config.replace(seed=seed), num_steps
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._loader, _ = build_loaders(self._config, dataset, device=device, dtype=torch.float32, rank=0, world_size=1)
        if dataset.kind == "text":
            shapes = ModelFacts(vocab_size=dataset.vocab_size, context_length=config.context_length)
        else:
            shapes = ModelFacts.of_images(dataset.num_classes, dataset.image_shape)
        torch.manual_seed(seed)  # noqa: TID251 - a script may, a library may not
        self.model: nn.Module = build_model(config.model, config.model_args, shapes).to(device)
        if config.freeze_bn_scale:
            freeze_bn_scale_(self.model)
        self.optimizer = optimizer_of(self._config, self.model)
        self._task = Task(dataset.kind, config.label_smoothing)
        self._next, self._batches = -1, iter(())

    def step(self, number: int) -> float:
        """One step on batch ``number``."""
        if number != self._next:
            self._seek(number)
        batch = next(self._batches, None)
        if batch is None:
            self._seek(number)
            batch = next(self._batches)
        self._next = number + 1
        set_learning_rate(self.optimizer, learning_rate_factor(self._config, (number + 0.5) / self._num_steps))
        self.model.train()
        inputs, targets = self._task.split(batch.inputs, batch.targets)
        loss = self._task.losses(self.model(inputs), targets).mean()
        loss.backward()
        if self._config.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self._config.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    def _seek(self, number: int) -> None:
        epoch = 0
        while True:
            self._loader.set_epoch(epoch)
            if number < len(self._loader):
                break
            number -= len(self._loader)
            epoch += 1
        self._batches = iter(self._loader)
        for _ in range(number):
            next(self._batches)


class Replay(Training):
    """The same run, read from a recording up to its last checkpoint: no batch is computed that others computed."""

    def __init__(
        self, config: TrainConfig, dataset: Any, seed: int, recording: CheckpointStore, losses: Sequence[float]
    ) -> None:
        super().__init__(config, dataset, seed, len(losses))
        self._recording, self._losses = recording, losses
        self._states = set(recording.steps())
        self._last = max(self._states)

    def step(self, number: int) -> float:
        if number >= self._last:
            return super().step(number)
        if number + 1 in self._states:
            self._recording.restore(number + 1, model=self.model, optimizer=self.optimizer)
        return self._losses[number]


class WeightsOnly(CheckpointStore):
    """A store that is given no optimizer."""

    def save(self, step: int, *, model: nn.Module, optimizer: Optimizer) -> Any:  # noqa: ARG002
        return super().save(step, model=model)

    def restore(self, step: int, *, model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:  # noqa: ARG002
        return super().restore(step, model=model)


def record(make: Callable[[], Training], folder: Path, told: dict[str, Any]) -> tuple[CheckpointStore, list[float]]:
    """The run that never stops: its states at each checkpoint, and all its losses. Read, if it was recorded before."""
    store, losses_file = CheckpointStore(folder / "states", codec=Lossless()), folder / "losses.json"
    if losses_file.exists():
        return store, json.loads(losses_file.read_text())
    training, losses = make(), []
    last = told["every"] * told["saves"]
    for number in range(last + told["then"]):
        if number and number % told["every"] == 0 and number <= last:
            store.save(number, model=training.model, optimizer=training.optimizer)
        losses.append(training.step(number))
    losses_file.write_text(json.dumps(losses))
    return store, losses


def main() -> None:
    """Measure what is missing, and write the table."""
    parser = argparse.ArgumentParser(description="What it costs to go on from stored history.")
    parser.add_argument(
        "--settings", nargs="+", default=["text-0.95"], help="text-0.95 text-0.999 text-muon cifar10 vit"
    )
    parser.add_argument("--plan", choices=["last", "each"], default="last", help="restore after the last, or each")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS), help="codecs; all by default")
    parser.add_argument("--every", type=int, default=100, help="steps between checkpoints")
    parser.add_argument("--saves", type=int, default=5, help="checkpoints before the (last) restore")
    parser.add_argument("--then", type=int, default=100, help="steps after the last restore")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--model-args", nargs="*", default=[], help="NAME=VALUE, for example width=512")
    parser.add_argument("--data-root", type=Path, help="folder with text/ and cifar10/ ($SCRIMP_DATA)")
    parser.add_argument("--work", type=Path, help="folder to keep recordings in; by default they go in the end")
    parser.add_argument("--runs", type=Path, help="runs file (default: results/checkpoints_resume_HARDWARE.jsonl)")
    parser.add_argument("--out", type=Path, help="result file (default: results/checkpoints_resume_HARDWARE.json)")
    options = parser.parse_args()
    runs_file = options.runs or RESULTS / f"checkpoints_resume_{hardware_slug()}.jsonl"
    done = read_runs(runs_file)
    model_args = {name: int(value) for name, value in (word.split("=") for word in options.model_args)}
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        for setting in options.settings:
            config = configs(options.data_root)[setting]
            config = config.replace(model_args={**config.model_args, **model_args})
            for seed in options.seeds:
                told = {
                    "setting": setting, "plan": options.plan, "seed": seed, "every": options.every,
                    "saves": options.saves, "then": options.then, "model_args": config.model_args,
                }  # fmt: skip
                missing = [row for row in options.rows if not is_done({**told, "row": row}, done)]
                print(f"{setting}, plan {options.plan}, seed {seed}: {len(options.rows) - len(missing)} rows are there")
                if not missing:
                    continue
                for run in measure(config, missing, told, work):
                    done.append(run)
                    runs_file.parent.mkdir(parents=True, exist_ok=True)
                    with runs_file.open("a") as file:
                        file.write(json.dumps(run) + "\n")
    out = options.out or RESULTS / f"checkpoints_resume_{hardware_slug()}.json"
    write_result(out, {"facts": facts(torch.get_num_threads()), "runs": done})


def is_done(told: dict[str, Any], done: list[dict[str, Any]]) -> bool:
    return any(all(run[key] == value for key, value in told.items()) for run in done)


def measure(config: TrainConfig, rows: list[str], told: dict[str, Any], work: Path) -> Iterator[dict[str, Any]]:
    """One run for each of the rows, on one recording."""
    dataset, seed, every, saves = load_dataset(config.data), told["seed"], told["every"], told["saves"]
    num_steps = every * saves + told["then"]
    make: Callable[[], Training] = functools.partial(Training, config, dataset, seed, num_steps)
    name = "-".join(str(value) for key, value in told.items() if key not in ("plan", "model_args"))
    name += "".join(f"-{key}-{value}" for key, value in sorted(config.model_args.items()))
    folder = work / name
    folder.mkdir(parents=True, exist_ok=True)
    recording, losses = record(make, folder, told)
    whole = recording.report()
    if told["plan"] == "last":
        make = functools.partial(Replay, config, dataset, seed, recording, losses)
    steps = [every * number for number in range(1, saves + 1)]
    for row in rows:
        of = ROWS[row]
        started = time.process_time()
        with tempfile.TemporaryDirectory() as temporary:
            store = (WeightsOnly if of.weights_only else CheckpointStore)(temporary, codec=of.codec, exact_tail=0)
            report = resume_equivalence(
                make, store, save_every=every, restore_at=steps if told["plan"] == "each" else steps[-1:],
                num_steps=num_steps, uninterrupted=losses,
            ).to_dict()  # fmt: skip
            roles = by_role(store.tensors())
        # a row that leaves something out is compared with the whole state all the same
        of_all = whole.raw_bytes_per_weight / report["raw_bytes_per_weight"]
        ratios = {key: report[key] and of_all * report[key] for key in ("delta_ratio", "whole_ratio")}
        report |= {**ratios, "raw_bytes_per_weight": whole.raw_bytes_per_weight}
        cost, final = report["worst_difference"], sum(losses[-told["then"] :]) / told["then"]
        print(
            f"{told['setting']}, {row}: {cost:+.4f} nats at {ratios['delta_ratio'] or math.nan:.1f}x per difference, "
            f"{ratios['whole_ratio']:.1f}x whole",
            flush=True,
        )
        yield {
            "row": row, **told, **report, "last_by_role": roles, "final_loss_nats": final,
            "cpu_seconds": round(time.process_time() - started, 1), "codec": of.codec.to_state(),
        }  # fmt: skip


if __name__ == "__main__":
    main()
