"""The real Accelerate: one process by order, several by index, and a shard that is refused."""

import pytest
import torch
from tests.reference.pruned_loops import Numbered, loss_of
from torch.utils.data import DataLoader

import scrimp
from scrimp.errors import ConfigError
from scrimp.samples import Budget
from scrimp.testing import check_ranks_agree

data_loader = pytest.importorskip("accelerate.data_loader", reason="accelerate is not installed")


def prepared(pruner, rank=0, num_processes=1):
    """What ``Accelerator.prepare`` makes of a loader."""
    loader = DataLoader(Numbered(40), batch_size=5, sampler=pruner)
    return data_loader.prepare_data_loader(
        loader, num_processes=num_processes, process_index=rank, put_on_device=False, even_batches=False
    )


def test_one_process_by_order():
    """Its loader looks one batch ahead."""
    pruner = scrimp.SamplePruner(40, 6, Budget(0.5))
    loader = prepared(pruner)
    for epoch in range(3):
        seen = []
        for index, _ in loader:
            pruner.reduce(loss_of(index, epoch))
            seen += index.tolist()
        assert pruner.epoch == epoch + 1
        assert len(seen) == (20 if epoch else 40)
    pruner.set_epoch(3)
    assert torch.equal(pruner._planner.scores.tracks[0, seen].float(), loss_of(torch.tensor(seen), 2))


def test_a_shard_is_refused():
    pruner = scrimp.InfoBatch(40, 5)
    next(iter(prepared(pruner, num_processes=2)))
    with pytest.raises(ConfigError, match=r"BatchSamplerShard deals.*index="):
        pruner.reduce(torch.ones(5))
    pruner = scrimp.InfoBatch(40, 5, rank=0, world_size=2)
    with pytest.raises(ConfigError, match="already gives each process its own share"):
        next(iter(prepared(pruner, num_processes=2)))


def two_processes_by_index(rank):
    pruner = scrimp.SamplePruner(40, 6, Budget(0.5), rank=0, world_size=1)
    loader, seen = prepared(pruner, rank, 2), []
    for epoch in range(3):
        for index, _ in loader:
            pruner.reduce(loss_of(index, epoch), index=index)
            seen.append((epoch, index.tolist()))
        assert pruner.epoch_progress == epoch + 1
    pruner.set_epoch(3)
    last = torch.tensor(sorted(sample for epoch, batch in seen for sample in batch if epoch == 2))
    scores = pruner._planner.scores.tracks[0]
    assert torch.equal(scores[last].float(), loss_of(last, 2))
    return {"scores": scores, "plan": pruner.epoch_indices()}


def test_two_processes_by_index():
    result = check_ranks_agree(two_processes_by_index)
    assert not result["scores"].isnan().any()
