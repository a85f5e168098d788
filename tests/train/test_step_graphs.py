"""Captured steps: what is captured when, with a capture that a CPU can follow; and, on CUDA, the same training."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.reference.command import same_bits, weights
from tests.reference.runs import tiny
from torch import Tensor

from scrimp.steps import EarlyFreeze
from scrimp.train.job import Job, Seams
from scrimp.train.run import Started, run
from scrimp.train.step_graphs import StepGraphs, reason_against
from scrimp.train.task import Task

STEM = "tests.reference.models:stem_net"
on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a CUDA device")


class FollowingCapture:
    """Learns the outputs' shapes by a step that is taken back; a replay does the work into the same outputs."""

    def __init__(self) -> None:
        self.job: Job | None = None
        self.num_captured = self.num_replayed = 0

    def __call__(self, work: Callable[[], tuple[Tensor, Tensor | None]]) -> Any:
        assert self.job is not None
        held = [*self.job.model.state_dict().values()]
        held += [slot for slots in self.job.optimizer.state.values() for slot in slots.values() if slot is not None]
        before = [tensor.clone() for tensor in held]
        outputs = work()
        for tensor, value in zip(held, before, strict=True):
            tensor.copy_(value)
        self.num_captured += 1

        def replay() -> None:
            self.num_replayed += 1
            freeze = self.job.freeze
            counted = freeze.state_dict() if freeze else None
            for static, fresh in zip(outputs, work(), strict=True):
                static.copy_(fresh)
            self.job.optimizer.zero_grad(set_to_none=True)  # those of a graph are its own
            if freeze:
                freeze.load_state_dict(counted)  # hooks do not run in a replay

        return replay, outputs


def train_with(capture: FollowingCapture | None, out: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Job:
    """A run of the loop with steps captured in this way, or plain ones."""
    jobs: list[Job] = []

    def graphs_of(job: Job) -> StepGraphs | None:
        if capture is None:
            return None
        capture.job = job
        return StepGraphs(job, capture)

    # by its name: what `scrimp.train` calls `run` is a function
    monkeypatch.setattr("scrimp.train.loop.step_graphs", graphs_of)
    config = tiny(graphs=True, **changes)
    run(config, out=out, on_start=lambda started: jobs.append(started.job))
    return jobs[0]


CONFIGS = {
    "plain": {"num_epochs": 1},
    "clipped, averaged": {"num_epochs": 1, "clip_norm": 0.5, "ema": 0.9},
    "frozen bias, growing images": {
        "model": STEM, "whiten": True, "whiten_bias_epochs": 1.4, "first_size": 4, "num_epochs": 2,
    },
    "muon": {"model": STEM, "optimizer": "muon", "num_epochs": 1},
    "adamw": {"num_epochs": 1, "optimizer": "adamw", "learning_rate": 1e-3},
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_captured_steps_train_the_same_weights(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    capture = FollowingCapture()
    train_with(capture, tmp_path / "captured", monkeypatch, **CONFIGS[name])
    train_with(None, tmp_path / "plain", monkeypatch, **CONFIGS[name])
    ours, theirs = weights(tmp_path / "captured"), weights(tmp_path / "plain")
    for key, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[key], rtol=1e-5, atol=1e-6)
    assert capture.num_replayed > 10
    assert capture.num_captured == (3 if "frozen" in name else 1)  # two sizes, the larger with the bias free and frozen


def test_too_many_shapes_go_on_as_usual(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("scrimp.train.step_graphs._MOST_GRAPHS", 1)
    capture = FollowingCapture()
    with caplog.at_level(logging.WARNING):
        train_with(capture, tmp_path / "run", monkeypatch, model=STEM, first_size=4, num_epochs=2)
    assert capture.num_captured == 1
    (message,) = caplog.messages
    assert message == (
        "steps go on without further CUDA graphs: there are 1 graphs already, and a batch of another shape came"
    )


def test_a_capture_that_fails_is_said_once_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing(FollowingCapture):
        def __call__(self, work: Any) -> Any:
            raise RuntimeError("operation not permitted when stream is capturing\nand more")

    with caplog.at_level(logging.WARNING):
        train_with(Failing(), tmp_path / "failing", monkeypatch, num_epochs=1)
    train_with(None, tmp_path / "plain", monkeypatch, num_epochs=1)
    reason = "capturing one failed (operation not permitted when stream is capturing)"
    assert caplog.messages == [f"steps go on without further CUDA graphs: {reason}"]
    assert same_bits(weights(tmp_path / "failing"), weights(tmp_path / "plain"))


def test_without_cuda_a_sentence_and_plain_steps(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        run(tiny(num_epochs=0.3, graphs=True), out=tmp_path / "run")
    assert caplog.messages == [
        "steps are not captured as CUDA graphs (--graphs): they are for CUDA, and this run is on cpu"
    ]


def test_what_takes_part_in_a_step_cannot_be_captured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, str | None] = {}

    def look(name: str) -> Callable[[Started], None]:
        def on_start(started: Started) -> None:
            job = started.job
            fake = Job(**{**vars(job), "device": torch.device("cuda")})
            seen[name] = reason_against(fake)
            if name == "plain":
                seen["text"] = reason_against(Job(**{**vars(fake), "task": Task("text")}))
                with monkeypatch.context() as patch:
                    patch.setattr("scrimp.train.step_graphs.world_size", lambda: 2)
                    seen["ranks"] = reason_against(fake)

        return on_start

    for name, changes, seams in (
        ("plain", {}, None),
        ("parts", {"accumulation": 2}, None),
        ("pruned", {"keep": 0.5, "num_epochs": 3}, None),
        ("penalty", {}, Seams(penalty=lambda model: torch.zeros(()))),
    ):
        run(tiny(**{"num_epochs": 0.1, **changes}), out=tmp_path / name, seams=seams, on_start=look(name))
    assert seen["plain"] is None
    assert seen["parts"] == "a batch is split into parts (--accumulation)"
    assert seen["penalty"] == seen["pruned"] == "a saving takes part in each step"
    assert seen["text"] == "they are for images"
    assert seen["ranks"] == "they are for one process"


def test_steps_that_hooks_do_not_hear_of_are_counted() -> None:
    parameter = torch.nn.Parameter(torch.zeros(2))
    freeze = EarlyFreeze(torch.optim.SGD([parameter], lr=1.0), [parameter], num_steps=2)
    freeze.count_step()
    assert not freeze.is_frozen
    freeze.count_step()
    assert freeze.is_frozen


@on_cuda
@pytest.mark.parametrize("name", CONFIGS)
def test_cuda_graphs_train_the_same_weights(name: str, tmp_path: Path) -> None:
    for graphs in (True, False):
        run(tiny(**{**CONFIGS[name], "graphs": graphs, "device": "cuda"}), out=tmp_path / str(graphs))
    ours, theirs = weights(tmp_path / "True"), weights(tmp_path / "False")
    for key, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[key], rtol=1e-3, atol=1e-4)
