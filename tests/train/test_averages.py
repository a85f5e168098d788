"""Averages of the weights in a run, against their definition."""

from pathlib import Path

import pytest
import torch
from tests.reference.command import weights
from tests.reference.runs import last_state, run_until, tiny
from torch import Tensor

from scrimp.errors import ConfigError
from scrimp.report.record import read_run
from scrimp.testing import assert_same_state
from scrimp.train.job import Seams
from scrimp.train.run import Started, run


class Weights:
    """The model's tensors after every step."""

    def __init__(self) -> None:
        self.first: dict[str, Tensor] = {}
        self.after: list[dict[str, Tensor]] = []

    def on_start(self, started: Started) -> None:
        self.model = started.job.model
        self.first = self.now()

    def now(self) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in self.model.state_dict().items()}

    def seams(self) -> Seams:
        return Seams(after_step=(lambda _step: self.after.append(self.now()),))


@pytest.mark.parametrize("num_epochs", [1, 15 / 22])  # 22 steps, and 15: with and without a rest after the last average
def test_the_average_is_judged_and_kept(tmp_path: Path, num_epochs: float) -> None:
    seen = Weights()
    done = run(
        tiny(ema=0.9, num_epochs=num_epochs, evaluate_every=0.5),
        out=tmp_path,
        seams=seen.seams(),
        on_start=seen.on_start,
    )
    expected = {name: tensor.double() for name, tensor in seen.first.items()}
    for step in range(5, done.step + 1, 5):
        for name, tensor in seen.after[step - 1].items():
            expected[name] = 0.9**5 * expected[name] + (1 - 0.9**5) * tensor
    for name, tensor in weights(tmp_path).items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, expected[name].float(), rtol=1e-5, atol=1e-6)
    assert not all(torch.equal(tensor, seen.after[-1][name]) for name, tensor in weights(tmp_path).items())


def test_training_goes_on_from_its_own_weights(tmp_path: Path) -> None:
    """Judging the average changes nothing in training."""
    often, rarely = Weights(), Weights()
    for seen, every in ((often, 0.2), (rarely, 10.0)):
        run(
            tiny(ema=0.9, num_epochs=1, evaluate_every=every), out=tmp_path / str(every),
            seams=seen.seams(), on_start=seen.on_start,
        )  # fmt: skip
    for ours, theirs in zip(often.after, rarely.after, strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_accuracy_on_the_way_is_that_of_the_average(tmp_path: Path) -> None:
    """An average that hardly moves stays as bad as the weights that training began with."""
    run(tiny(ema=0.99999, num_epochs=2), out=tmp_path / "slow")
    run(tiny(num_epochs=2), out=tmp_path / "none")
    slow, none = (
        [point.value for point in read_run(tmp_path / name).series("evaluation", "test_accuracy")]
        for name in ("slow", "none")
    )
    assert max(slow) < 0.3 < min(none)


def test_averages_that_do_not_go_together(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--lookahead goes on from an average .* choose one of them"):
        run(tiny(ema=0.9, lookahead=True), out=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


RULES = [{"prune_ratio": 0.6}, {"sample_rule": "quantiles"}, {"keep": 0.5}, {"sample_rule": "random"}]


@pytest.mark.parametrize("rule", RULES)
def test_lookahead_with_pruning_ends_on_its_average(tmp_path: Path, rule: dict) -> None:
    """Whether the number of steps is known beforehand or not."""
    seen = Weights()
    done = run(tiny(lookahead=True, num_epochs=4, **rule), out=tmp_path, seams=seen.seams(), on_start=seen.on_start)
    lasting = [line["sample_visits"] // 64 for line in read_run(tmp_path).events("epoch")]
    assert sum(lasting) == done.step < 4 * 22
    middles = [epoch + (step + 0.5) / count for epoch, count in enumerate(lasting) for step in range(count)]
    expected = {name: tensor.double() for name, tensor in seen.first.items() if tensor.is_floating_point()}
    for step in range(5, done.step + 1, 5):
        rho = 0.95**5 * (middles[step - 1] / 4) ** 3
        for name, average in expected.items():
            average.mul_(rho).add_(seen.after[step - 1][name].double(), alpha=1 - rho)
    for name, tensor in weights(tmp_path).items():
        if name in expected:
            torch.testing.assert_close(tensor, expected[name].float(), rtol=1e-4, atol=1e-5)
    if done.step % 5:
        assert not all(torch.equal(weights(tmp_path)[name], seen.after[-1][name]) for name in expected)


@pytest.mark.parametrize("average", [{"lookahead": True}, {"ema": 0.9}])
@pytest.mark.parametrize("rule", [{"prune_ratio": 0.6}, {"keep": 0.5}])
@pytest.mark.parametrize("stop", [13, 33])
def test_a_pruned_run_with_an_average_goes_on_bit_for_bit(tmp_path: Path, average, rule, stop) -> None:
    config = tiny(num_epochs=4, **average, **rule)
    whole = run(config, out=tmp_path / "whole")
    run_until(config, tmp_path / "parts", stop)
    parts = run(config, out=tmp_path / "parts", resume=True)
    assert parts.step == whole.step
    assert_same_state(last_state(parts.run_dir), last_state(whole.run_dir))
