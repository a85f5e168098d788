"""Ghost batch norm against BatchNorm on each group, and against BatchNorm when the group is the batch."""

import copy

import pytest
import torch
from torch import nn

from scrimp._core.rng import generator
from scrimp._core.structure import StructureChange, apply_structure_change
from scrimp.errors import ConfigError, DataError, NoEffectWarning
from scrimp.steps import GhostBatchNorm1d, GhostBatchNorm2d, GhostBatchNorm3d, ghost_batch_norm_

KINDS = [(GhostBatchNorm1d, (5,)), (GhostBatchNorm1d, ()), (GhostBatchNorm2d, (3, 4)), (GhostBatchNorm3d, (2, 3, 2))]


def inputs(batch, spatial, dtype=torch.float64, channels=3):
    x = torch.randn(batch, channels, *spatial, generator=generator(0, "inputs"), dtype=torch.float64)
    number = torch.arange(batch).view(-1, *[1] * (x.dim() - 1))
    return (x * (number + 1) + number).to(dtype)  # groups differ in mean and size


def made(kind, group_size=4, dtype=torch.float64, **options):
    norm = kind(3, **options).to(dtype)
    norm.group_size = group_size
    if norm.affine:
        with torch.no_grad():
            norm.weight.copy_(torch.tensor([0.5, 1.0, 2.0]))
            norm.bias.copy_(torch.tensor([-1.0, 0.0, 3.0]))
    return norm


def plain(norm):
    """BatchNorm with the same state."""
    kind = next(base for base in type(norm).__mro__ if base in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d))
    twin = copy.deepcopy(norm)
    twin.__class__ = kind
    return twin


def by_chunks(norm, x):
    """The slow twin: BatchNorm on each group by itself, the rest with the last group."""
    size, groups = norm.group_size, max(1, len(x) // norm.group_size)
    cuts = [x[n * size : (n + 1) * size if n + 1 < groups else None] for n in range(groups)]
    return torch.cat([plain(norm)(cut) for cut in cuts])


@pytest.fixture(params=["by kernel", "pointwise"])
def way(request, monkeypatch):
    """Both ways: that of CPUs, and that of other devices and of compilers."""
    if request.param == "pointwise":
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    return request.param


@pytest.mark.parametrize("batch", [4, 8, 12, 9, 11, 7])
@pytest.mark.parametrize(("kind", "spatial"), KINDS)
@pytest.mark.parametrize("affine", [True, False])
def test_equals_batch_norm_of_each_group(kind, spatial, batch, affine, way):
    norm = made(kind, affine=affine)
    x, y = inputs(batch, spatial).requires_grad_(), inputs(batch, spatial).requires_grad_()
    expected = by_chunks(norm, x)
    result = norm(y)
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)
    weights = torch.randn(result.shape, generator=generator(1), dtype=torch.float64)
    (result * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(y.grad, x.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("batch", [8, 11])
@pytest.mark.parametrize("momentum", [0.1, 1.0, None])
@pytest.mark.parametrize(("kind", "spatial"), KINDS)
def test_running_statistics_are_those_of_the_whole_batch(kind, spatial, momentum, batch, way):
    norm = made(kind, momentum=momentum)
    twin = plain(norm)
    for step in range(3):
        norm(inputs(batch, spatial) + step)
        twin(inputs(batch, spatial) + step)
    torch.testing.assert_close(norm.running_mean, twin.running_mean)
    torch.testing.assert_close(norm.running_var, twin.running_var)
    assert norm.num_batches_tracked == 3
    x = inputs(5, spatial)
    torch.testing.assert_close(norm.eval()(x), twin.eval()(x))


def test_the_variance_between_groups_counts(way):
    """What Page's version leaves out: groups that are constant have no variance but that of their means."""
    norm = GhostBatchNorm2d(1, momentum=1.0)
    norm.group_size = 2
    norm(torch.tensor([0.0, 0.0, 6.0, 6.0]).view(4, 1, 1, 1))
    assert norm.running_mean.item() == 3.0
    assert norm.running_var.item() == 12.0  # 9, times 4 / 3


@pytest.mark.parametrize("batch", [4, 7, 3])
def test_one_group_is_batch_norm_bit_by_bit(batch, way):
    norm = made(GhostBatchNorm2d, group_size=4, dtype=torch.float32)
    norm._has_trained = True  # no warning for the batch of 3
    twin = plain(norm)
    x = inputs(batch, (3, 3), torch.float32)
    assert torch.equal(norm(x), twin(x))
    assert torch.equal(norm.running_var, twin.running_var)


@pytest.mark.parametrize("batch", [8, 10])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_keeps_memory_format_and_dtype(batch, dtype, way):
    norm = made(GhostBatchNorm2d, dtype=torch.float32)
    x = inputs(batch, (3, 4), dtype)
    result = norm(x.contiguous(memory_format=torch.channels_last))
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert result.dtype == dtype
    again = made(GhostBatchNorm2d, dtype=torch.float32)(x)
    assert again.is_contiguous()
    torch.testing.assert_close(again, result)
    torch.testing.assert_close(again.double(), by_chunks(made(GhostBatchNorm2d), x.double()), rtol=1e-2, atol=2e-2)


@pytest.mark.parametrize("options", [{}, {"affine": False}, {"track_running_stats": False}])
def test_a_model_of_half_precision(options, way):
    """All parameters in bfloat16, no running statistics, no parameters: as BatchNorm takes them."""
    norm = made(GhostBatchNorm2d, dtype=torch.bfloat16, **options)
    x = inputs(11, (3, 4), torch.bfloat16)
    result = norm(x)
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result.float(), by_chunks(norm.float(), x.float()), rtol=2e-2, atol=3e-2)


def test_without_any_state(way):
    norm = made(GhostBatchNorm2d, affine=False, track_running_stats=False)
    x = inputs(11, (3, 4))
    torch.testing.assert_close(norm(x), by_chunks(norm, x))


def test_in_place_keeps_parameters_names_and_mode():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Sequential(nn.BatchNorm2d(3))).eval()
    parameters, names = list(model.parameters()), list(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert ghost_batch_norm_(model, group_size=8) == 2
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert list(model.state_dict()) == names
    assert not model[1].training
    assert isinstance(model[2][0], GhostBatchNorm2d)
    assert "group_size=8" in repr(model)
    model.train()(inputs(16, (2, 2), torch.float32)).sum().backward()
    optimizer.step()
    assert ghost_batch_norm_(model, group_size=4) == 2  # again, with another size
    assert model[1].group_size == 4


def test_structure_changes_follow():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    ghost_batch_norm_(model, group_size=2)
    left = torch.tensor([0, 2])
    names = ["0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var"]
    apply_structure_change(StructureChange(dict.fromkeys(names, ((0, left),))), model=model)
    assert model[1].num_features == 2
    assert model(inputs(4, (2, 2), torch.float32)).shape == (4, 2, 2, 2)


def test_small_batches_say_what_to_do():
    norm = GhostBatchNorm2d(3)
    with pytest.warns(
        NoEffectWarning, match=r"the batch has 8 samples, fewer than one group of 32.*smaller group_size"
    ):
        norm(inputs(8, (2, 2), torch.float32))
    norm(inputs(8, (2, 2), torch.float32))  # once is enough: the last batch of an epoch may well be small
    one = GhostBatchNorm2d(3)
    one.group_size = 1
    with pytest.raises(DataError, match="use a larger group_size"):
        one(inputs(8, (1, 1), torch.float32))


@pytest.mark.parametrize("size", [0, -1, 1.5, True, "32"])
def test_bad_sizes_are_refused(size):
    with pytest.raises(ConfigError, match="positive number of samples"):
        ghost_batch_norm_(nn.BatchNorm2d(3), group_size=size)


@pytest.mark.parametrize("norm", [nn.SyncBatchNorm(3), nn.LazyBatchNorm2d()])
def test_other_norms_are_refused_and_nothing_changes(norm):
    model = nn.Sequential(nn.BatchNorm2d(3), norm)
    with pytest.raises(ConfigError, match=f"1 is a {type(norm).__name__}"):
        ghost_batch_norm_(model)
    assert type(model[0]) is nn.BatchNorm2d


def test_a_model_without_batch_norm_warns():
    with pytest.warns(NoEffectWarning, match="no batch norm in Linear"):
        assert ghost_batch_norm_(nn.Linear(2, 2)) == 0


def test_wrong_number_of_dimensions_is_refused_as_by_batch_norm():
    with pytest.raises(ValueError, match="expected 4D"):
        GhostBatchNorm2d(3)(torch.zeros(64, 3, 2))
