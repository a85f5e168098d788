"""Learning-rate schedule at known points, and which parameters are decayed."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from scrimp.errors import ConfigError
from scrimp.steps import Muon
from scrimp.train.config import TrainConfig
from scrimp.train.models import ModelFacts, build_model
from scrimp.train.optimization import build_optimizer, learning_rate_factor, set_learning_rate


@pytest.mark.parametrize(
    ("settings", "points"),
    [
        ({"decay": "linear", "warmup": 0.2}, {0.0: 0.0, 0.1: 0.5, 0.2: 1.0, 0.6: 0.5, 1.0: 0.0}),
        ({"decay": "linear", "warmup": 0.0}, {0.0: 1.0, 0.25: 0.75, 1.0: 0.0}),
        ({"decay": "linear", "warmup": 0.2, "final_learning_rate": 0.1}, {0.2: 1.0, 0.6: 0.55, 1.0: 0.1}),
        ({"decay": "cosine", "warmup": 0.5}, {0.25: 0.5, 0.5: 1.0, 0.75: 0.5, 0.625: 0.5 + 0.5**1.5, 1.0: 0.0}),
        ({"decay": "cosine", "warmup": 0.0, "final_learning_rate": 0.5}, {0.0: 1.0, 0.5: 0.75, 1.0: 0.5}),
        ({"decay": "constant", "warmup": 0.5}, {0.0: 0.0, 0.25: 0.5, 0.5: 1.0, 1.0: 1.0}),
        ({"decay": "linear", "warmup": 1.0}, {0.0: 0.0, 0.5: 0.5, 1.0: 1.0}),
        ({"warmup": 0.5, "first_learning_rate": 0.2}, {0.0: 0.2, 0.25: 0.6, 0.5: 1.0, 0.75: 0.5, 1.0: 0.0}),
        (
            {"warmup": 0.2, "cooldown": 0.2, "final_learning_rate": 0.1},
            {0.1: 0.5, 0.2: 1.0, 0.5: 0.55, 0.8: 0.1, 0.9: 0.1, 1.0: 0.1},
        ),
        ({"warmup": 0.5, "cooldown": 0.5, "final_learning_rate": 0.25}, {0.25: 0.5, 0.6: 0.25, 1.0: 0.25}),
    ],
)
def test_known_points(settings: dict[str, float | str], points: dict[float, float]) -> None:
    config = TrainConfig.from_dict(settings)
    for progress, factor in points.items():
        assert learning_rate_factor(config, progress) == pytest.approx(factor, abs=1e-12), progress


unit = st.floats(0, 1)


@given(
    warmup=unit, final=unit, decay=st.sampled_from(["linear", "cosine", "constant"]),
    progress=st.tuples(unit, unit).map(sorted),
)  # fmt: skip
def test_it_rises_then_falls_without_a_jump(warmup: float, final: float, decay: str, progress: list[float]) -> None:
    config = TrainConfig.from_dict({"warmup": warmup, "final_learning_rate": final, "decay": decay})
    first, second = (learning_rate_factor(config, p) for p in progress)
    assert 0 <= min(first, second) <= max(first, second) <= 1
    if progress[1] <= warmup:
        assert first <= second
    if progress[0] >= warmup:
        assert final - 1e-12 <= second <= first
    steepest = (1 / warmup if warmup > 1e-300 else 0) + 2 / max(1e-12, 1 - warmup)
    assert abs(second - first) <= (progress[1] - progress[0]) * steepest + 1e-9


def test_no_step_of_training_has_rate_zero() -> None:
    # the loop asks at the middle of a step
    config = TrainConfig(warmup=0.1, decay="linear")
    assert learning_rate_factor(config, 0.5 / 1000) > 0
    assert learning_rate_factor(config, 999.5 / 1000) > 0


@pytest.fixture
def model() -> nn.Module:
    return build_model("small-cnn", {"width": 4}, ModelFacts(num_classes=10, in_channels=1, image_size=8))


def test_biases_and_norms_are_not_decayed(model: nn.Module) -> None:
    optimizer = build_optimizer(TrainConfig(weight_decay=0.25), model)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert len(decay) == len(list(model.parameters()))
    names = dict(model.named_parameters())
    assert {name for name, p in names.items() if decay[id(p)] == 0} == {n for n, p in names.items() if p.dim() == 1}
    assert {decay[id(p)] for p in names.values() if p.dim() > 1} == {0.25}
    assert any("norm" in name for name in names)


def test_biases_and_norms_are_decayed_on_request(model: nn.Module) -> None:
    optimizer = build_optimizer(TrainConfig(weight_decay=0.25, decay_norms=True), model)
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.25}
    optimizer = build_optimizer(TrainConfig(weight_decay=0.25, decay_norms=True, bias_scale=64), model)
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.25, 0.25 / 64}


def test_muon_is_for_filters_and_sgd_for_the_rest(model: nn.Module) -> None:
    config = TrainConfig(optimizer="muon", learning_rate=0.5, momentum=0.75, muon_learning_rate=0.25, muon_momentum=0.5)
    optimizer = build_optimizer(config, model)
    assert type(optimizer) is Muon
    convs = [module.weight for module in model.modules() if isinstance(module, nn.Conv2d)]
    filters, *rest = optimizer.param_groups
    assert {id(p) for p in filters["params"]} == {id(p) for p in convs[1:]}
    assert (filters["lr"], filters["momentum"], filters["renormalize"]) == (0.25, 0.5, True)
    assert {(group["lr"], group["momentum"]) for group in rest} == {(0.5, 0.75)}
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(list(model.parameters()))


def test_muon_with_adamw_is_for_hidden_weights_and_leaves_their_norm_free(model: nn.Module) -> None:
    config = TrainConfig(
        optimizer="muon-adamw", learning_rate=0.5, momentum=0.75, beta2=0.875, weight_decay=0.125,
        muon_learning_rate=0.25, muon_momentum=0.5,
    )  # fmt: skip
    optimizer = build_optimizer(config, model)
    assert type(optimizer) is Muon
    filters, *rest = optimizer.param_groups
    convs = [module.weight for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert {id(p) for p in filters["params"]} == {id(p) for p in convs[1:]}
    assert (filters["lr"], filters["momentum"], filters["renormalize"], filters["weight_decay"]) == (
        0.25,
        0.5,
        False,
        0.125,
    )
    assert {(group["lr"], group["betas"]) for group in rest} == {(0.5, (0.75, 0.875))}
    assert sorted({group["weight_decay"] for group in rest}) == [0, 0.125]
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(list(model.parameters()))


def test_muon_without_filters_is_refused() -> None:
    with pytest.raises(ConfigError, match="Muon is for networks with several trainable convolutions"):
        build_optimizer(TrainConfig(optimizer="muon"), nn.Linear(2, 2))


def test_norms_of_matrices_are_not_fixed() -> None:
    vit = build_model(
        "vit",
        {"width": 16, "depth": 1, "num_heads": 2, "patch_size": 4},
        ModelFacts(num_classes=10, in_channels=1, image_size=8),
    )
    with pytest.raises(ConfigError, match="take --optimizer muon-adamw"):
        build_optimizer(TrainConfig(optimizer="muon"), vit)
    assert type(build_optimizer(TrainConfig(optimizer="muon-adamw"), vit)) is Muon


def test_sgd_has_nesterov_momentum(model: nn.Module) -> None:
    optimizer = build_optimizer(TrainConfig(learning_rate=0.5, momentum=0.75), model)
    assert type(optimizer) is torch.optim.SGD
    assert {(g["lr"], g["momentum"], g["nesterov"]) for g in optimizer.param_groups} == {(0.5, 0.75, True)}
    assert not build_optimizer(TrainConfig(momentum=0), model).defaults["nesterov"]


def test_adamw_has_both_betas(model: nn.Module) -> None:
    optimizer = build_optimizer(TrainConfig(optimizer="adamw", learning_rate=0.5, momentum=0.75, beta2=0.5), model)
    assert type(optimizer) is torch.optim.AdamW
    assert {(g["lr"], g["betas"]) for g in optimizer.param_groups} == {(0.5, (0.75, 0.5))}


def test_a_model_without_biases_is_no_reason_to_warn() -> None:
    optimizer = build_optimizer(TrainConfig(weight_decay=0.25), nn.Linear(2, 2, bias=False))
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.25]


def test_the_rate_is_always_scaled_from_its_peak() -> None:
    net = nn.Linear(2, 2)
    groups = [{"params": [net.weight], "lr": 0.5}, {"params": [net.bias], "lr": 8.0}]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    for factor in (0.5, 0.25, 1.0):
        set_learning_rate(optimizer, factor)
        assert [group["lr"] for group in optimizer.param_groups] == [0.5 * factor, 8.0 * factor]


def test_the_peak_survives_a_checkpoint() -> None:
    net = nn.Linear(2, 2)
    optimizer, again = (torch.optim.SGD(net.parameters(), lr=0.5) for _ in range(2))
    set_learning_rate(optimizer, 0.125)
    again.load_state_dict(optimizer.state_dict())
    set_learning_rate(again, 1.0)
    assert again.param_groups[0]["lr"] == 0.5
