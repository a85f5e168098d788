"""Claims: with ``shard_scores=True`` a process keeps at most 8 bytes per sample between epochs, divided by the number
of processes; its plans are those of a pruner without shards, to the bit.

How. Gloo processes on this machine train one epoch on made-up lognormal losses without a network, and go on to the
next: exchange, commit, gather, plan. The same is done without shards. Reported for rank 0 (ranks agree on checksums):
bytes of all tensors that the pruner holds before the next pass begins, with and without the present plan; the highest
resident memory of the process; seconds of going on to the next epoch, in which all ranks work at once.

    python benchmarks/samples_sharded.py                            # 10 million samples on two processes
"""

import argparse
import resource
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from environment import RESULTS, facts, write_result

import scrimp
from scrimp.samples import Budget
from scrimp.testing import run_ranks

_AT_A_TIME = 100_000


def one_kind(_rank: int, num_samples: int, shard_scores: bool) -> dict[str, Any]:
    """From the first epoch to the second."""
    at_start = resident_bytes()
    pruner = scrimp.SamplePruner(num_samples, 90, Budget(keep=0.6), shard_scores=shard_scores)
    iter(pruner)
    handout = pruner._passes.handout
    assert handout is not None
    for index in handout.order.split(_AT_A_TIME):
        losses = torch.randn(index.numel(), generator=torch.Generator().manual_seed(int(index[0]))).exp_()
        pruner.reduce(losses, index=index)
    pruner.restart_epoch()
    del handout, index, losses
    begin, cpu_begin = time.perf_counter(), time.process_time()
    pruner.set_epoch(1)
    num_visits = pruner.num_visits
    seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - cpu_begin
    plan = pruner._planner.plan
    assert plan is not None
    digest, of_plan = plan.digest(), held_bytes(plan.visits)
    pruner._planner.forget()
    return {
        "digest": digest,
        "num_visits": num_visits,
        "scores_bytes_per_sample": held_bytes(pruner._planner.scores) / num_samples,
        "plan_bytes_per_sample": of_plan / num_samples,
        "next_epoch_wall_seconds": round(seconds, 3),
        "next_epoch_cpu_seconds": round(cpu_seconds, 3),
        "peak_memory_above_start_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - at_start,
    }


def held_bytes(owner: object) -> int:
    """Bytes of the tensors among the attributes of ``owner``."""
    tensors = [value for value in vars(owner).values() if isinstance(value, torch.Tensor)] if owner is not None else []
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)


def resident_bytes() -> int:
    """The highest so far."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="What sharded scores need.")
    parser.add_argument("--num-samples", type=int, default=10_000_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS / "samples_sharded.json")
    options = parser.parse_args(words)
    kinds: dict[str, Any] = {}
    for name, shard_scores in (("whole", False), ("sharded", True)):
        by_rank = run_ranks(
            one_kind, options.num_samples, shard_scores, world_size=options.processes, timeout_seconds=570
        )
        assert len({result["digest"] for result in by_rank}) == 1
        kinds[name] = by_rank[0]
        print(name, by_rank[0])
    sharded = kinds["sharded"]
    claims = {
        "same_plan": kinds["whole"]["digest"] == sharded["digest"],
        "scores_bytes_per_sample_at_most_8_over_processes": sharded["scores_bytes_per_sample"] <= 8 / options.processes,
    }
    print(claims)
    result = {"num_samples": options.num_samples, "processes": options.processes, "kinds": kinds, "claims": claims}
    write_result(options.out, {**facts(threads=1), **result})


if __name__ == "__main__":
    main()
