"""What the settings of a run make of a model, and that it can be loaded again."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.reference.runs import tiny
from torch import nn

from scrimp.errors import ConfigError, NoEffectWarning
from scrimp.steps import GhostBatchNorm2d
from scrimp.train import load_run
from scrimp.train.data import load_dataset
from scrimp.train.run import run

STEM = "tests.reference.models:stem_net"


@pytest.mark.parametrize(
    "changes",
    [
        {"model": STEM, "whiten": True},
        {"whiten": True},  # by a convolution before the first, which has another number of filters
        {"model": STEM, "pool_early": "norm", "celu": 0.3, "ghost_batch": 16, "freeze_bn_scale": True, "ema": 0.9},
    ],
    ids=["whitening", "whitening before", "the rest"],
)
def test_a_changed_model_can_be_loaded(tmp_path: Path, changes: dict[str, Any]) -> None:
    done = run(tiny(num_epochs=1, **changes), out=tmp_path / "run")
    trained, data = load_run(done.run_dir), load_dataset("digits")
    with torch.no_grad():
        outputs = trained.model(trained.prepare(data.test.inputs))
    assert done.summary is not None
    assert data.test.targets is not None
    assert (outputs.argmax(dim=1) == data.test.targets).double().mean().item() == done.summary.test_accuracy
    modules = list(trained.model.modules())
    if changes.get("whiten"):
        first = next(module for module in modules if isinstance(module, nn.Conv2d))
        assert not first.weight.requires_grad
    else:
        kinds = [type(module) for module in modules[1:]]
        assert kinds[2:6] == [nn.Conv2d, nn.MaxPool2d, GhostBatchNorm2d, nn.CELU]
        assert nn.ReLU not in kinds
        assert {module.alpha for module in modules if isinstance(module, nn.CELU)} == {0.3}
        assert {m.group_size for m in modules if isinstance(m, GhostBatchNorm2d)} == {16}


def test_whitening_filters_are_those_of_the_normalised_images(tmp_path: Path) -> None:
    done = run(tiny(num_epochs=0.1, model=STEM, whiten=True, whiten_epsilon=1e-9), out=tmp_path / "run")
    trained, data = load_run(done.run_dir), load_dataset("digits")
    images = trained.prepare(data.train.inputs)
    conv = trained.model[0]
    outputs = nn.functional.conv2d(images.double(), conv.weight.double()[:4]).transpose(0, 1).flatten(1)
    moment = outputs @ outputs.T / outputs.shape[1]
    torch.testing.assert_close(moment, torch.eye(4, dtype=torch.float64), atol=1e-3, rtol=0)


def test_the_bias_behind_them_is_frozen_in_time(tmp_path: Path) -> None:
    biases = []

    def remember(started: Any) -> None:
        started.job.optimizer.register_step_post_hook(
            lambda *_: biases.append(started.job.model[0].bias.detach().clone())
        )

    run(tiny(num_epochs=1, model=STEM, whiten=True, whiten_bias_epochs=0.5), out=tmp_path / "run", on_start=remember)
    changed = [not torch.equal(before, after) for before, after in pairwise(biases)]
    assert changed == [True] * 10 + [False] * 11


def test_pruned_epochs_count_as_epochs_for_the_freeze(tmp_path: Path) -> None:
    epochs = []

    def remember(started: Any) -> None:
        last = started.job.model[0].bias.detach().clone()

        def note(*_: Any) -> None:
            nonlocal last
            now = started.job.model[0].bias.detach().clone()
            epochs.extend([started.job.loader.epoch] * (not torch.equal(now, last)))
            last = now

        started.job.optimizer.register_step_post_hook(note)

    settings = {"num_epochs": 8, "keep": 0.5, "model": STEM, "whiten": True, "whiten_bias_epochs": 3}
    done = run(tiny(**settings), out=tmp_path / "run", on_start=remember)
    assert done.step < 8 * 22 * 0.8, "epochs were pruned"
    assert set(epochs) == {0, 1, 2}


def test_whitening_without_a_bias_to_freeze_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--whiten-bias-epochs: the whitening convolution of this model has no bias"):
        run(tiny(whiten=True, whiten_bias_epochs=1), out=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("changes", [{"celu": 0.3}, {"ghost_batch": 8}, {"freeze_bn_scale": True}])
def test_a_change_without_effect_is_told(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.warns(NoEffectWarning, match="found no"):
        run(tiny(num_epochs=0.1, model="tests.reference.models:Exploding", **changes), out=tmp_path / "run")


def test_sizes_beyond_the_image_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="first_size is 9, but an image has only 8 pixels"):
        run(tiny(first_size=9), out=tmp_path / "run")


def test_training_sees_small_images_first(tmp_path: Path) -> None:
    sizes = []

    def remember(started: Any) -> None:
        model = started.job.model
        model.register_forward_pre_hook(lambda module, inputs: sizes.append((module.training, inputs[0].shape[-1])))

    config = tiny(num_epochs=1, first_size=4, full_size_from=0.5)
    run(config, out=tmp_path / "run", on_start=remember)
    assert sizes[:22] == [(True, 4)] * 11 + [(True, 8)] * 11
    assert set(sizes[22:]) == {(False, 8)}
