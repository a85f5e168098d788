"""Numbers in TensorBoard and Weights & Biases: what was written there, and what is said when they are missing."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.reference.runs import tiny

from scrimp.errors import MissingDependencyError
from scrimp.report.record import RunWriter
from scrimp.train.mirrors import MirroringWriter, open_mirrors
from scrimp.train.pruning import with_rule_named
from scrimp.train.run import run


def lines(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_no_mirror_no_detour(tmp_path: Path) -> None:
    assert type(open_mirrors(tiny(), tmp_path / "run")) is RunWriter
    assert not (tmp_path / "run").exists()


class Recorder:
    def __init__(self) -> None:
        self.written: list[Any] = []

    def write(self, event: str, step: int, values: dict[str, float]) -> None:
        self.written.append((event, step, values))

    def close(self) -> None:
        self.written.append("closed")


def test_a_mirror_gets_the_numbers_and_the_record_everything(tmp_path: Path) -> None:
    mirror = Recorder()
    with MirroringWriter(tmp_path, [mirror]) as record:
        record.write("step", step=3, epoch=0.5, seconds=1.0, train_loss=2, extra="text", flag=True, none=None)
        record.note("hello", step=4, epoch=0.75, seconds=2.0)
    assert mirror.written == [
        ("step", 3, {"epoch": 0.5, "train_loss": 2.0}), ("note", 4, {"epoch": 0.75}), "closed"
    ]  # fmt: skip
    assert lines(tmp_path)[0] == {
        "event": "step", "step": 3, "epoch": 0.5, "seconds": 1.0,
        "train_loss": 2, "extra": "text", "flag": True, "none": None,
    }  # fmt: skip
    assert len(lines(tmp_path)) == 2


def test_a_mirror_is_closed_after_an_error_too(tmp_path: Path) -> None:
    mirror = Recorder()
    with pytest.raises(KeyError), MirroringWriter(tmp_path, [mirror]):
        raise KeyError
    assert mirror.written == ["closed"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of TensorBoard's own
def test_tensorboard_events_can_be_read_back(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run(tiny(num_epochs=1, tensorboard=True), out=tmp_path / "run")
    events = accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    for event, key in (("step", "train_loss"), ("step", "learning_rate"), ("evaluation", "test_accuracy")):
        ours = [(line["step"], line[key]) for line in lines(tmp_path / "run") if line["event"] == event]
        theirs = [(scalar.step, scalar.value) for scalar in events.Scalars(f"{event}/{key}")]
        assert [step for step, _ in theirs] == [step for step, _ in ours] != []
        assert [value for _, value in theirs] == pytest.approx([value for _, value in ours])


@pytest.mark.parametrize(
    ("setting", "module", "extra"),
    [({"tensorboard": True}, "torch.utils.tensorboard", "tensorboard"), ({"wandb": "p"}, "wandb", "wandb"),
     ({"tensorboard": True, "wandb": "p"}, "wandb", "wandb")],
)  # fmt: skip
def test_a_missing_package_is_named_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: dict[str, Any], module: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=rf'--{extra} needs .*: pip install "scrimp\[{extra}\]"'):
        run(tiny(**setting), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_wandb_gets_one_run_with_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    service = SimpleNamespace(
        log=lambda values, step: calls.append((step, sorted(values))), finish=lambda: calls.append("finished")
    )
    fake = SimpleNamespace(init=lambda **settings: calls.append(settings) or service)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    config = tiny(num_epochs=0.5, wandb="my-project", log_every=11)
    run(config, out=tmp_path / "run")
    assert calls[0]["project"] == "my-project"
    assert calls[0]["config"] == with_rule_named(config).to_dict()
    assert (11, ["evaluation/epoch", "evaluation/test_accuracy", "evaluation/test_loss_nats"]) in calls
    assert calls[-1] == "finished"
    assert calls.count("finished") == 1
