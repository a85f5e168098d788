"""A run that is stopped on one device and goes on on another."""

import pytest
import torch
from tests.reference.runs import run_until, tiny

from scrimp.report.record import RunStatus, read_run
from scrimp.train.run import run
from scrimp.train.variants import SAVINGS, savings_of

ALL = {key: value for saving in SAVINGS for key, value in getattr(savings_of("digits"), saving).items()}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("source", "target"), [("cpu", "cuda"), ("cuda", "cpu")])
@pytest.mark.parametrize("optimizer", [{}, {"optimizer": "adamw", "learning_rate": 0.01}], ids=["sgd", "adamw"])
def test_all_four_savings_go_on_where_they_were(tmp_path, source, target, optimizer):
    """Not bit by bit, as devices round differently: the accuracy is that of a run which never moved, within 5 %."""
    config = tiny(**{**ALL, **optimizer, "gamma": 0.5, "num_epochs": 6, "model_args": {"width": 8}})
    whole = run(config.replace(device=target), out=tmp_path / "whole")
    stopped = run_until(config.replace(device=source), tmp_path / "moved", whole.step // 2)
    assert stopped.status is RunStatus.INTERRUPTED
    done = run(config.replace(device=target), out=tmp_path / "moved", resume=True)
    assert done.status is RunStatus.FINISHED
    assert (done.step, done.summary.sample_visits) == (whole.step, whole.summary.sample_visits)
    assert done.summary.device.startswith(target)
    assert abs(done.summary.test_accuracy - whole.summary.test_accuracy) < 0.05
    assert any("resumed" in line["text"] for line in read_run(done.run_dir).events("note"))
