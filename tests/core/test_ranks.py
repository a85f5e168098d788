import pytest
import torch
import torch.distributed as dist

from scrimp._core import ranks
from scrimp.errors import ConfigError
from scrimp.testing import run_ranks


def test_without_processes_everything_is_trivial():
    assert (ranks.world_size(), ranks.rank(), ranks.is_main()) == (1, 0, True)
    ranks.barrier()
    values = torch.tensor([3, 1, 2])
    assert [part.tolist() for part in ranks.all_gather_ints(values)] == [[3, 1, 2]]
    assert ranks.all_reduce_sum_(values) is values
    assert values.tolist() == [3, 1, 2]
    ranks.assert_same_on_all_ranks(b"x", "the plan")


def talk(rank: int):
    """Everything in one start of processes, for starting them is what costs."""
    large = 2**53 + 1  # would not survive float64, let alone float32
    seen = {"own": (ranks.world_size(), ranks.rank(), ranks.is_main())}
    ranks.barrier()
    seen["gathered"] = [part.tolist() for part in ranks.all_gather_ints(torch.arange(2 * rank) + large)]
    seen["empty"] = [part.tolist() for part in ranks.all_gather_ints(torch.empty(0, dtype=torch.int64))]
    total = torch.tensor([[1.0, 2.0], [3.0, 4.0]]) * (rank + 1)
    strided = total.t()
    assert ranks.all_reduce_sum_(strided) is strided
    seen["sum"] = total.tolist()
    ranks.assert_same_on_all_ranks("alike", "the plan")
    try:
        ranks.assert_same_on_all_ranks(f"rank {rank // 2}", "the plan")
    except ConfigError as error:
        seen["error"] = str(error)
    try:
        with ranks.failing_together("the second step"):
            if rank == 1:
                raise ValueError("no")
    except (ConfigError, ValueError) as error:
        seen["together"] = f"{type(error).__name__}: {error}"
    with ranks.failing_together("the third step"):
        pass
    dist.barrier()
    return seen


def test_three_ranks():
    large = 2**53 + 1
    results = run_ranks(talk, world_size=3)
    for rank, seen in enumerate(results):
        assert seen["own"] == (3, rank, rank == 0)
        assert seen["gathered"] == [[], [large, large + 1], [large, large + 1, large + 2, large + 3]]
        assert seen["empty"] == [[], [], []]
        assert seen["sum"] == [[6.0, 12.0], [18.0, 24.0]]
        assert "the plan is not the same on all ranks: rank 2 of 3 differs from rank 0" in seen["error"]
        expected = "ValueError: no" if rank == 1 else "ConfigError: the second step did not work on rank 1, so"
        assert seen["together"].startswith(expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_without_processes_a_cuda_tensor_stays_where_it_is():
    values = torch.tensor([1], device="cuda")
    assert ranks.all_gather_ints(values)[0].device == values.device
