import multiprocessing
import os
import pickle
import sys
import time
from multiprocessing import Pipe

import pytest
import torch
import torch.distributed as dist

from scrimp.errors import ConfigError
from scrimp.testing import check_ranks_agree, ranks, run_ranks
from scrimp.testing.ranks import _collect


class Point:
    """A class of this file, to travel with arguments and results."""

    def __init__(self, x: int) -> None:
        self.x = x


def describe(rank: int, tensor: torch.Tensor, point: Point):
    total = tensor.clone()
    dist.all_reduce(total)
    return {
        "rank": rank,
        "world": (dist.get_rank(), dist.get_world_size(), dist.get_backend()),
        "threads": torch.get_num_threads(),
        "total": total,
        "point": Point(point.x + rank),
        "parent": os.getppid(),
    }


def fail_on_one(rank: int):
    if rank == 1:
        raise ValueError("the second rank has a reason")
    dist.barrier()  # waits for the rank that is gone


def test_of_failures_that_arrive_together_the_first_is_told():
    pipes = [Pipe(duplex=False) for _ in range(2)]
    for (_, sender), (at, told) in zip(pipes, [(2.0, "a peer is lost"), (1.0, "the reason")], strict=True):
        sender.send_bytes(pickle.dumps((False, (at, told))))
    with pytest.raises(AssertionError, match="rank 1 of 2 failed:\nthe reason"):
        _collect([receiver for receiver, _ in pipes], 10.0)


def die_on_one(rank: int):
    if rank == 1:
        os._exit(3)
    time.sleep(60)


def hang(rank: int):
    time.sleep(60)


def test_ranks_meet_and_their_results_come_back_in_order():
    results = run_ranks(describe, torch.arange(3), Point(5))
    for rank, result in enumerate(results):
        assert result["rank"] == rank
        assert result["world"] == (rank, 2, "gloo")
        assert result["threads"] == 1
        assert result["total"].tolist() == [0, 2, 4]
        assert result["point"].x == 5 + rank
        assert result["parent"] == os.getpid()
    assert not dist.is_initialized()


def test_a_failure_comes_with_its_traceback():
    started = time.monotonic()
    with pytest.raises(AssertionError, match="rank 1 of 2 failed") as caught:
        run_ranks(fail_on_one)
    assert "ValueError: the second rank has a reason" in str(caught.value)
    assert "in fail_on_one" in str(caught.value)
    assert time.monotonic() - started < 60


def test_a_death_is_noticed():
    with pytest.raises(AssertionError, match="rank 1 of 2 died without a word"):
        run_ranks(die_on_one)


def test_ranks_that_hang_are_ended():
    with pytest.raises(AssertionError, match="rank 0, 1 of 2 was not done after 2 seconds"):
        run_ranks(hang, timeout_seconds=2)
    assert not multiprocessing.active_children()


def test_agreement_and_its_opposite(monkeypatch):
    monkeypatch.setattr(ranks, "run_ranks", lambda *_, **__: [{"a": torch.ones(2)}] * 3)
    assert check_ranks_agree(describe)["a"].tolist() == [1.0, 1.0]
    monkeypatch.setattr(ranks, "run_ranks", lambda *_, **__: [{"b": [0]}, {"b": [0]}, {"b": [1]}])
    with pytest.raises(
        AssertionError, match="the result of rank 2, compared with rank 0, differs at 'b/0': 1 instead of 0"
    ):
        check_ranks_agree(describe)


def test_functions_that_cannot_be_found_again_are_refused():
    def local(rank):
        return rank

    for function in (local, lambda rank: rank, print, Point(1)):
        with pytest.raises(ConfigError, match="at the top level of a module's file"):
            run_ranks(function)


def test_a_function_is_found_by_its_file_where_its_module_cannot_be_imported(tmp_path, monkeypatch):
    """As under pytest's importlib mode, where modules have names that lead nowhere, and in a script."""
    file = tmp_path / "odd name.py"
    file.write_text("class Thing: pass\n\n\ndef function(rank):\n    return rank, Thing.__module__\n")
    for name, found_as in [("no.such.package.odd", "no.such.package.odd"), ("__main__", "scrimp_testing_ranks_main")]:
        function = ranks._Place(name, str(file), "function").find()
        monkeypatch.delitem(sys.modules, found_as)
        assert function(1) == (1, found_as)


def test_a_function_is_found_by_name_where_that_leads_to_its_file():
    place = ranks._Place.of(ranks.run_ranks)
    assert place.find() is ranks.run_ranks
    assert ranks._Place.of(describe).find().__code__.co_filename == __file__
