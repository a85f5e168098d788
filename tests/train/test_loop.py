"""The loop: its seams, its arithmetic, and that stopping and resuming changes nothing, bit for bit."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.reference.command import lines_without_times, same_bits, weights
from tests.reference.models import plain_net
from tests.reference.runs import STEPS_PER_EPOCH, bits, last_state, run_until, tiny
from torch import Tensor, nn

from scrimp._core.index_plan import SequentialPlan, ShufflePlan
from scrimp.checkpoints import CheckpointStore
from scrimp.report.record import RunStatus, RunWriter
from scrimp.steps import Batch
from scrimp.train.config import TrainConfig
from scrimp.train.data import load_dataset
from scrimp.train.job import Job, Seams
from scrimp.train.loop import epochs_begun, steps_wanted, train
from scrimp.train.optimization import build_optimizer, learning_rate_factor
from scrimp.train.run import run
from scrimp.train.task import Task, build_loaders

CPU = torch.device("cpu")
PLAIN = "tests.reference.models:plain_net"
STEM = "tests.reference.models:stem_net"


def make_job(config: TrainConfig, seams: Seams | None = None) -> Job:
    """A job by hand, on a net whose first weights are always the same."""
    dataset = load_dataset("digits")
    loader, test_loader = build_loaders(config, dataset, device=CPU, dtype=torch.float32, rank=0, world_size=1)
    net = plain_net(num_classes=10, in_channels=1)
    draw = torch.Generator().manual_seed(config.seed)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.1, generator=draw)
    return Job(
        config=config, model=net, task=Task("images", config.label_smoothing), loader=loader, test_loader=test_loader,
        optimizer=build_optimizer(config, net), device=CPU, autocast=None, seams=seams or Seams(),
    )  # fmt: skip


def weights_after(config: TrainConfig, out: Path, seams: Seams | None = None) -> dict[str, Tensor]:
    run(config, out=out, seams=seams)
    return weights(out)


def closeness(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


# arithmetic


def test_it_is_the_training_that_anybody_would_write(tmp_path: Path) -> None:
    config = tiny(num_epochs=2, label_smoothing=0.1, clip_norm=1.0, crop_padding=0, momentum=0.8, weight_decay=0.01)
    job = make_job(config)
    train(job, CheckpointStore(tmp_path), None)

    twin = make_job(config)
    net = twin.model
    groups = [{"params": [p], "weight_decay": 0.01 if p.dim() > 1 else 0.0} for p in net.parameters()]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.8, nesterov=True)
    step = 0
    for _epoch in range(2):
        for images, labels in twin.loader:
            for group in optimizer.param_groups:
                group["lr"] = 0.1 * learning_rate_factor(config, (step + 0.5) / 44)
            optimizer.zero_grad()
            F.cross_entropy(net(images), labels, label_smoothing=0.1).backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            step += 1
    for ours, theirs in zip(job.model.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("extra", [{}, {"clip_norm": 0.5}, {"optimizer": "adamw", "learning_rate": 1e-3}])
def test_a_batch_in_parts_is_the_same_batch(tmp_path: Path, extra: dict[str, Any]) -> None:
    def penalty(model: nn.Module) -> Tensor:
        return 0.01 * sum((p.square().sum() for p in model.parameters()), torch.zeros(()))

    trained = []
    for parts in (1, 3, 64):
        config = tiny(model=PLAIN, num_epochs=0.5, accumulation=parts, **extra)
        trained.append(weights_after(config, tmp_path / str(parts), Seams(penalty=penalty)))
    assert closeness(trained[0], trained[1]) < 1e-5
    assert closeness(trained[0], trained[2]) < 1e-5
    other = weights_after(tiny(model=PLAIN, num_epochs=0.5, **extra), tmp_path / "other")
    assert closeness(trained[0], other) > 1e-4  # without the penalty: the comparison can fail


def test_gradients_of_parts_are_equal_to_a_millionth(tmp_path: Path) -> None:
    """After a single step there is nothing that could amplify rounding."""
    config = tiny(num_epochs=1e-6)
    whole, parts = make_job(config), make_job(config.replace(accumulation=3))
    before = [p.detach().clone() for p in whole.model.parameters()]
    for number, job in enumerate((whole, parts)):
        assert train(job, CheckpointStore(tmp_path / str(number)), None)[1].step == 1
    for ours, theirs, first in zip(whole.model.parameters(), parts.model.parameters(), before, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
        assert float((ours.detach() - first).abs().max()) > 1e-4


def test_the_rate_of_every_step(tmp_path: Path) -> None:
    """Taken in the middle of a step; a step that is rounded up keeps within the schedule."""
    for num_epochs, num_steps in ((0.5, 11), (1.2, 26), (1.01, 23), (0.01, 1)):
        config = tiny(num_epochs=num_epochs, decay="cosine", final_learning_rate=0.1, warmup=0.25)
        out = tmp_path / str(num_epochs)
        with RunWriter(out) as record:
            train(make_job(config.replace(log_every=1)), CheckpointStore(out), record)
        rates = [line["learning_rate"] for line in lines_without_times(out) if line["event"] == "step"]
        end = max(num_epochs, 1 / STEPS_PER_EPOCH)
        progress = [min(1.0, (step + 0.5) / STEPS_PER_EPOCH / end) for step in range(num_steps)]
        assert rates == pytest.approx([0.1 * learning_rate_factor(config, p) for p in progress])
        assert min(rates) > 0


@pytest.mark.parametrize(
    ("num_epochs", "expected"),
    [(1, [10]), (2.0, [10, 10]), (2.5, [10, 10, 5]), (0.3, [3]), (1e-9, [1]), (1.01, [10, 1]), (1.12, [10, 1]),
     (0.1 + 0.2, [3]), (2.0000000001, [10, 10]), (1.9999999999, [10, 10]), (0.999, [10])],
)  # fmt: skip
def test_steps_of_a_fractional_number_of_epochs(num_epochs: float, expected: list[int]) -> None:
    assert [steps_wanted(num_epochs, epoch, 10) for epoch in range(epochs_begun(num_epochs))] == expected


@pytest.mark.parametrize("num_epochs", [0.01, 0.2, 0.99, 1.0, 1.2, 1.3, 1.999])
def test_a_fraction_of_an_epoch_ends_with_everything(tmp_path: Path, num_epochs: float) -> None:
    done = run(tiny(num_epochs=num_epochs, evaluate_every=10, checkpoint_every=10), out=tmp_path / "run")
    assert done.status is RunStatus.FINISHED
    assert done.summary is not None
    whole, part = divmod(num_epochs, 1)
    steps = STEPS_PER_EPOCH * int(whole) + (max(1, round(STEPS_PER_EPOCH * part)) if part else 0)
    assert done.step == done.summary.num_steps == steps
    assert done.summary.sample_visits == done.summary.sample_visits_full == steps * 64
    events = [(line["event"], line["step"]) for line in lines_without_times(tmp_path / "run")]
    for event in ("evaluation", "checkpoint", "epoch"):
        assert (event, steps) in events, "the end is always evaluated, saved and summed up"
        assert len([e for e in events if e[0] == event]) == (2 if event == "epoch" and num_epochs > 1 else 1)
    assert CheckpointStore(tmp_path / "run" / "checkpoints").steps() == [steps]


# seams


@dataclass
class Recording:
    """Every seam, writing down how it was called."""

    calls: list[Any] = field(default_factory=list)

    def sampler(self, num_samples: int) -> ShufflePlan:
        self.calls.append(("sampler", num_samples))
        return ShufflePlan(num_samples, seed=3)

    def draw(self, index: Tensor, epoch: int, generator: torch.Generator) -> Tensor:
        self.calls.append(("draw", len(index), epoch))
        return torch.arange(len(index))

    def apply(self, inputs: Tensor, drawn: Tensor | None) -> Tensor:
        assert drawn is not None
        self.calls.append(("apply", tuple(inputs.shape), inputs.dtype, int(drawn[0])))
        return inputs

    def reduce(self, losses: Tensor, batch: Batch) -> Tensor:
        assert losses.requires_grad
        assert losses.shape == batch.index.shape == (len(batch.inputs),)
        assert batch.targets is not None
        self.calls.append(("reduce", len(losses), batch.global_size))
        return losses.mean()

    def penalty(self, model: nn.Module) -> Tensor:
        assert model.training
        self.calls.append(("penalty", type(model).__name__))
        return torch.zeros(())

    def after_step(self, step: int) -> None:
        self.calls.append(("after_step", step))

    def seams(self) -> Seams:
        return Seams(
            sampler=self.sampler, transforms=(self,), reduce=self.reduce, penalty=self.penalty,
            after_step=(self.after_step, lambda step: self.calls.append(("second", step))),
        )  # fmt: skip


def test_the_seams_are_called_in_their_order(tmp_path: Path) -> None:
    recording = Recording()
    images = ("apply", (64, 1, 8, 8), torch.float32)
    config = tiny(model=PLAIN, num_epochs=2 / STEPS_PER_EPOCH, accumulation=3)
    run(config, out=tmp_path / "run", seams=recording.seams())
    assert recording.calls == [
        ("sampler", 1438),
        ("draw", 1438, 0),
        *(
            call
            for step in (1, 2)
            for call in (
                (*images, 64 * (step - 1)),
                ("reduce", 22, 64), ("reduce", 21, 64), ("reduce", 21, 64), ("penalty", "Sequential"),
                ("after_step", step), ("second", step),
            )
        ),
    ]  # fmt: skip


def test_after_step_sees_the_changed_weights_and_no_gradients(tmp_path: Path) -> None:
    config = tiny(num_epochs=1e-6)
    seen = []
    before = [p.detach().clone() for p in make_job(config).model.parameters()]

    def look(step: int) -> None:
        seen.append([(bool((p != q).any()), p.grad) for p, q in zip(job.model.parameters(), before, strict=True)])

    job = make_job(config, Seams(after_step=(look,)))
    train(job, CheckpointStore(tmp_path), None)
    assert seen == [[(True, None)] * 4]


def test_defaults_are_plain_training(tmp_path: Path) -> None:
    config = tiny(num_epochs=1)
    plain = weights_after(config, tmp_path / "plain")
    seams = Seams(
        reduce=lambda losses, batch: losses.mean(),
        penalty=lambda model: torch.zeros(()),
        after_step=(lambda step: None,),
    )
    assert same_bits(plain, weights_after(config, tmp_path / "with", seams))


def test_a_weighted_reduction_changes_the_result(tmp_path: Path) -> None:
    config = tiny(num_epochs=0.5)

    def weighted(losses: Tensor, batch: Batch, *, factor: float) -> Tensor:
        return (losses * torch.where(batch.index % 2 == 0, factor, 1.0)).mean()

    plain, ones, twos = (
        weights_after(config, tmp_path / str(factor), Seams(reduce=functools.partial(weighted, factor=factor)))
        if factor else weights_after(config, tmp_path / "plain")
        for factor in (0, 1.0, 2.0)
    )  # fmt: skip
    assert closeness(plain, ones) < 1e-6
    assert closeness(plain, twos) > 1e-3


class Weighted(SequentialPlan):
    """Every second sample counts double, or is left out: in the mean the same gradient for doubled data."""

    def epoch_weights(self) -> Tensor:
        return torch.arange(self.num_samples).remainder(2).mul(2).float()


def test_weights_of_the_sampler_reach_the_loss(tmp_path: Path) -> None:
    config = tiny(model=PLAIN, num_epochs=0.5, crop_padding=0)
    weighted = weights_after(config, tmp_path / "weighted", Seams(sampler=Weighted))

    def by_hand(losses: Tensor, batch: Batch) -> Tensor:
        return losses[batch.index % 2 == 1].mean()

    seams = Seams(sampler=SequentialPlan, reduce=by_hand)
    assert closeness(weighted, weights_after(config, tmp_path / "by hand", seams)) < 1e-6


class Counting:
    """State of a saving: what it has seen of the losses."""

    def __init__(self) -> None:
        self.total, self.steps = torch.zeros(()), 0

    def reduce(self, losses: Tensor, batch: Batch) -> Tensor:
        self.total += losses.detach().sum()
        return losses.mean()

    def after_step(self, step: int) -> None:
        self.steps += 1
        assert self.steps == step

    def state_dict(self) -> dict[str, Any]:
        return {"total": self.total.clone(), "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.total, self.steps = state["total"].clone(), state["steps"]

    def seams(self) -> Seams:
        return Seams(reduce=self.reduce, after_step=(self.after_step,), state={"counting": self})


def test_the_state_of_a_saving_is_kept_in_checkpoints(tmp_path: Path) -> None:
    whole, first, second = Counting(), Counting(), Counting()
    config = tiny(num_epochs=1)
    run(config, out=tmp_path / "whole", seams=whole.seams())
    run_until(config, tmp_path / "parts", 9, seams=first.seams())
    run(config, out=tmp_path / "parts", resume=True, seams=second.seams())
    assert (first.steps, second.steps, whole.steps) == (9, 22, 22)
    assert torch.equal(second.total, whole.total)


# stopping and resuming

CONFIGS = {
    "sgd, augmentation": tiny(crop_padding=1, flip="random", cutout=2, model_args={"width": 4}),
    "adamw, dropout": tiny(
        model="tests.reference.models:dropout_net", optimizer="adamw", learning_rate=3e-3, flip="alternating",
        evaluate_every=0.4, checkpoint_every=0.7,
    ),
    "fraction, parts": tiny(num_epochs=1.7, accumulation=2, clip_norm=1.0, decay="cosine", checkpoint_every=10),
    "muon with adamw": tiny(model=STEM, optimizer="muon-adamw", muon_learning_rate=0.02, learning_rate=0.003),
    "muon, whitening, small images": tiny(
        model=STEM, whiten=True, whiten_bias_epochs=0.9, optimizer="muon", first_size=6, bias_scale=4,
        flip="alternating",
    ),
    "average, ghost batch norm, views": tiny(
        model=STEM, ema=0.9, ghost_batch=16, celu=0.3, pool_early="norm", freeze_bn_scale=True, views="six",
        num_epochs=1.7,
    ),
    "lookahead": tiny(lookahead=True, model_args={"width": 4}, num_epochs=1.7),
    "Python's dice": tiny(model="tests.reference.models:PythonDice", log_every=7),
}  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    @functools.cache
    def done(name: str) -> Path:
        out = tmp_path_factory.mktemp("whole") / "run"
        run(CONFIGS[name], out=out)
        return out

    return done


def without_saves(out: Path) -> list[dict[str, Any]]:
    """The metric lines but for checkpoints, of which an interrupted run has one more."""
    return [line for line in lines_without_times(out) if line["event"] != "checkpoint"]


def assert_same_run(ours: Path, theirs: Path) -> None:
    assert without_saves(ours) == without_saves(theirs)
    assert same_bits(weights(ours), weights(theirs))
    assert bits(last_state(ours)) == bits(last_state(theirs))


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("stop", [1, 13, 22, 23, 36])
def test_an_interrupted_run_is_the_uninterrupted_one(
    uninterrupted: Callable[[str], Path], tmp_path: Path, name: str, stop: int
) -> None:
    config, out = CONFIGS[name], tmp_path / "run"
    stopped = run_until(config, out, stop)
    assert (stopped.status, stopped.step, stopped.summary) == (RunStatus.INTERRUPTED, stop, None)
    assert CheckpointStore(out / "checkpoints").steps()[-1] == stop
    resumed = run(config, out=out, resume=True)
    assert resumed.status is RunStatus.FINISHED
    assert_same_run(out, uninterrupted(name))


def test_many_interruptions(uninterrupted: Callable[[str], Path], tmp_path: Path) -> None:
    name, out = "adamw, dropout", tmp_path / "run"
    steps = [run_until(CONFIGS[name], out, stop, resume=stop > 5).step for stop in range(5, 45, 9)]
    assert steps == [5, 14, 23, 32, 41]
    run(CONFIGS[name], out=out, resume=True)
    assert_same_run(out, uninterrupted(name))


def test_the_comparison_can_fail(uninterrupted: Callable[[str], Path], tmp_path: Path) -> None:
    """Other random numbers in dropout alone are seen."""
    name, out = "adamw, dropout", tmp_path / "run"
    run_until(CONFIGS[name], out, 13)
    store = CheckpointStore(out / "checkpoints")
    state = store.load(13)
    state["extra"]["rng"][0]["torch"] = torch.Generator().manual_seed(5).get_state()
    job = make_like(name)
    store.restore(model=job[0], optimizer=job[1])
    store.save(13, model=job[0], optimizer=job[1], extra=state["extra"])
    run(CONFIGS[name], out=out, resume=True)
    assert not same_bits(weights(out), weights(uninterrupted(name)))


def make_like(name: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    from tests.reference.models import dropout_net

    net = dropout_net(num_classes=10, in_channels=1).to(memory_format=torch.channels_last)
    return net, build_optimizer(CONFIGS[name], net)


def test_being_asked_to_stop_after_the_last_step_is_too_late(tmp_path: Path) -> None:
    for num_epochs, last in ((1.0, 22), (1.2, 26), (0.01, 1)):
        done = run_until(tiny(num_epochs=num_epochs), tmp_path / str(last), last)
        assert (done.status, done.step) == (RunStatus.FINISHED, last)
        assert done.summary is not None


@pytest.mark.parametrize("more", [{}, {"keep": 0.6, "num_epochs": 4.2, "compress": True}], ids=["plain", "savings"])
def test_a_run_killed_after_its_last_checkpoint_finishes_at_once(tmp_path: Path, more: dict[str, Any]) -> None:
    config, out = tiny(**{"num_epochs": 1.2, **more}), tmp_path / "run"
    whole = run(config, out=out)
    expected = weights(out), without_saves(out)
    for name in ("summary.json", "model.safetensors", "report.html"):
        (out / name).unlink()
    done = run(config, out=out, resume=True)
    assert done.status is RunStatus.FINISHED
    assert done.summary is not None
    assert done.summary.num_steps == whole.step
    assert same_bits(weights(out), expected[0])
    assert without_saves(out) == expected[1]


def test_the_last_checkpoint_was_not_the_last_line(uninterrupted: Callable[[str], Path], tmp_path: Path) -> None:
    """A killed run has written lines after its checkpoint; the resumed one writes them again, once."""
    name, out = "sgd, augmentation", tmp_path / "run"
    run_until(CONFIGS[name].replace(checkpoint_codec="lossless"), out, 37)
    store = CheckpointStore(out / "checkpoints")
    assert store.steps() == [22, 37]
    store.delete(37)
    run(CONFIGS[name], out=out, resume=True)
    assert_same_run(out, uninterrupted(name))


def test_the_record_is_optional(tmp_path: Path) -> None:
    config = tiny(num_epochs=0.5)
    with RunWriter(tmp_path / "run") as record:
        status, journal = train(make_job(config), CheckpointStore(tmp_path / "a"), record)
    silent_status, silent = train(make_job(config), CheckpointStore(tmp_path / "b"), None)
    assert status is silent_status is RunStatus.FINISHED
    assert journal.evaluation == silent.evaluation
    assert journal.step == silent.step == 11
