import json

import pytest
import torch
from torch import nn

from scrimp._core.state_tree import flatten_state, unflatten_state
from scrimp._core.tensor_role import (
    HasTensorRoles,
    TensorRole,
    optimizer_slot_role,
    roles_of_model,
    roles_of_optimizer,
    roles_of_state,
    tag,
)
from scrimp.errors import ConfigError

OPTIMIZERS = {
    "SGD": ({"momentum": 0.9}, {"momentum_buffer": "momentum"}),
    "Adam": (
        {"amsgrad": True},
        {"exp_avg": "first moment", "exp_avg_sq": "second moment", "max_exp_avg_sq": "second moment", "step": "exact"},
    ),
    "NAdam": ({}, {"exp_avg": "first moment", "exp_avg_sq": "second moment", "step": "exact", "mu_product": "exact"}),
    "Adamax": ({}, {"exp_avg": "first moment", "exp_inf": "exact", "step": "exact"}),
    "RMSprop": (
        {"momentum": 0.9, "centered": True},
        {"square_avg": "second moment", "grad_avg": "first moment", "momentum_buffer": "momentum", "step": "exact"},
    ),
    "Adagrad": ({}, {"sum": "second moment", "step": "exact"}),
    "Adadelta": ({}, {"square_avg": "second moment", "acc_delta": "second moment", "step": "exact"}),
    "Adafactor": ({}, {"row_var": "exact", "col_var": "exact", "step": "exact"}),
    "ASGD": ({}, {"ax": "weight", "eta": "exact", "mu": "exact", "step": "exact"}),
    "Rprop": ({}, {"prev": "exact", "step_size": "exact", "step": "exact"}),
    "RAdam": ({}, {"exp_avg": "first moment", "exp_avg_sq": "second moment", "step": "exact"}),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_slots_of_real_optimizers(kind):
    options, expected = OPTIMIZERS[kind]
    weight = nn.Parameter(torch.ones(3, 2))
    optimizer = getattr(torch.optim, kind)([weight], lr=0.1, **options)
    for _ in range(2):
        weight.grad = torch.ones(3, 2)
        optimizer.step()
    roles = roles_of_optimizer(optimizer.state_dict())
    assert {path: role.value for path, role in roles.items()} == {f"state/0/{s}": r for s, r in expected.items()}


def test_what_is_not_known_is_exact():
    assert optimizer_slot_role("exp_avg") is TensorRole.FIRST_MOMENT
    assert optimizer_slot_role("something_new") is TensorRole.EXACT
    state = {
        "state": {
            0: {"exp_avg": torch.ones(2, dtype=torch.int8), "exp_avg_sq": torch.tensor(1.0), "new": torch.ones(2)},
            "global": 3,
        },
        "param_groups": [{"lr": torch.tensor(0.1), "params": [0]}],
    }
    roles = roles_of_optimizer(state)
    assert set(roles) == {"state/0/exp_avg", "state/0/exp_avg_sq", "state/0/new", "param_groups/0/lr"}
    assert set(roles.values()) == {TensorRole.EXACT}
    assert roles_of_optimizer({}) == {}


class Quantised(nn.Linear):
    def __init__(self):
        super().__init__(2, 3)
        self.bits = nn.Parameter(torch.ones(3))

    def tensor_roles(self):
        return {"bits": TensorRole.EXACT}


def test_roles_of_a_model():
    model = nn.Sequential(Quantised(), nn.BatchNorm1d(3), nn.Linear(3, 3))
    model[2].weight = nn.Parameter(torch.ones(3, 3))
    model.append(nn.Linear(3, 3, bias=False))
    model[3].weight = model[2].weight
    assert isinstance(model[0], HasTensorRoles)
    assert not isinstance(model[1], HasTensorRoles)
    weight, buffer, exact = TensorRole.WEIGHT, TensorRole.BUFFER, TensorRole.EXACT
    assert roles_of_model(model) == {
        "0.weight": weight, "0.bias": weight, "0.bits": exact, "1.weight": weight, "1.bias": weight,
        "1.running_mean": buffer, "1.running_var": buffer, "1.num_batches_tracked": exact,
        "2.weight": weight, "2.bias": weight, "3.weight": weight,
    }  # fmt: skip
    assert set(roles_of_model(model)) == set(model.state_dict())
    assert roles_of_model(model[0])["bits"] is exact
    del model[0].bits
    with pytest.raises(ConfigError, match=r"Quantised.tensor_roles\(\) names \['0.bits'\]"):
        roles_of_model(model)


def owner_state():
    average = tag(
        {"num_updates": 3, "tensors": {"conv.weight": torch.ones(4), "count": torch.tensor(3)}},
        {"tensors": TensorRole.WEIGHT},
    )
    pruner = tag(
        {"scores": torch.ones(5), "order": torch.arange(5), "generator": torch.ones(3, dtype=torch.uint8)},
        {"scores": TensorRole.SCORE},
    )
    return {"pruner": pruner, "averages": [average], "untold": {"x": torch.ones(2)}}


def test_owners_tag_their_state_and_it_survives_storage():
    state = owner_state()
    expected = {
        "pruner/scores": TensorRole.SCORE,
        "pruner/order": TensorRole.EXACT,
        "pruner/generator": TensorRole.EXACT,
        "averages/0/tensors/conv.weight": TensorRole.WEIGHT,
        "averages/0/tensors/count": TensorRole.EXACT,
        "untold/x": TensorRole.EXACT,
    }
    assert roles_of_state(state) == expected
    tensors, text = flatten_state(state)
    assert set(tensors) == set(expected)
    assert roles_of_state(unflatten_state(tensors, text)) == expected
    json.dumps(state["pruner"]["tensor_roles"])


def test_paths_are_those_that_states_are_stored_under():
    model = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "extra": owner_state()}
    roles = {f"model/{name}": role for name, role in roles_of_model(model).items()}
    roles |= {f"optimizer/{path}": role for path, role in roles_of_optimizer(state["optimizer"]).items()}
    roles |= {f"extra/{path}": role for path, role in roles_of_state(state["extra"]).items()}
    tensors, _ = flatten_state(state)
    assert set(roles) == set(tensors)


def test_the_nearest_tag_decides_and_a_direct_one_is_believed():
    weight, score = TensorRole.WEIGHT, TensorRole.SCORE
    inner = tag({"a": torch.ones(1), "b": torch.ones(1)}, {"a": score})
    state = tag({"part": inner, "count": torch.ones(1, dtype=torch.int64)}, {"part": weight, "count": score})
    assert roles_of_state(state) == {"part/a": score, "part/b": weight, "count": score}
    state["part"]["tensor_roles"]["a"] = "of a later version"
    assert roles_of_state(state)["part/a"] is TensorRole.EXACT
    # In one tag the deeper key wins.
    outer = tag({"part": {"a": torch.ones(1), "b": torch.ones(1)}}, {"part/a": score, "part": weight})
    assert roles_of_state(outer) == {"part/a": score, "part/b": weight}


def test_a_tag_for_nothing_is_refused():
    with pytest.raises(ConfigError, match=r"roles are given for \['score', 'epoch'\].*\['scores'\]"):
        tag({"scores": torch.ones(2), "epoch": 3}, {"score": TensorRole.SCORE, "epoch": TensorRole.SCORE})
