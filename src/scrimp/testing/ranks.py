"""Run a function on several gloo ranks on this machine, and check that they agree."""

import importlib
import importlib.util
import inspect
import multiprocessing
import os
import pickle
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from scrimp.errors import ConfigError
from scrimp.testing.stateful import assert_same_state

T = TypeVar("T")


def run_ranks(
    function: Callable[..., T], *arguments: Any, world_size: int = 2, timeout_seconds: float = 120.0
) -> list[T]:
    """Call ``function(rank, *arguments)`` in ``world_size`` fresh processes that share a gloo process group.

    Each process has one thread. They meet through a file in a temporary directory, so no port can be taken. The
    function is found again by its module's file and its name: it has to stand at the top level of a module, but that
    module need not be importable, as is the case for test files under pytest's importlib mode. Arguments and results
    travel by pickle between these processes and nowhere else.

    Returns: what each rank returned, in the order of the ranks.
    Raises: AssertionError - a rank raised (its traceback is in the message), died, or was not done in time; the
        other ranks are ended. ConfigError - the function is local, or has no file.
    Cost: starting the processes, which import torch: a few seconds.
    """
    place = _Place.of(function)
    payload = pickle.dumps(arguments)
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="scrimp-ranks-") as directory:
        rendezvous = (Path(directory) / "rendezvous").as_uri()
        processes, receivers = [], []
        try:
            for rank in range(world_size):
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(
                    target=_run_rank,
                    args=(sender, place, payload, rank, world_size, rendezvous, timeout_seconds),
                    daemon=True,
                )
                process.start()
                sender.close()
                processes.append(process)
                receivers.append(receiver)
            results = _collect(receivers, timeout_seconds)
            for process in processes:
                process.join()
            return results
        finally:
            for process in processes:
                if process.is_alive():
                    process.kill()
                process.join()
                process.close()
            for receiver in receivers:
                receiver.close()


def check_ranks_agree(
    function: Callable[..., Any], *arguments: Any, world_size: int = 2, timeout_seconds: float = 120.0
) -> Any:
    """``function(rank, *arguments)`` gives bit for bit the same tensors and values on every rank.

    Returns: those of rank 0.
    Raises: AssertionError - as ``run_ranks``, or a result differs; the message names the rank and the key.
    """
    results = run_ranks(function, *arguments, world_size=world_size, timeout_seconds=timeout_seconds)
    for rank, result in enumerate(results):
        assert_same_state(result, results[0], f"the result of rank {rank}, compared with rank 0,")
    return results[0]


class _Place:
    """Where a function is to be found, for a process that knows nothing of ours."""

    def __init__(self, module: str, file: str, name: str) -> None:
        self.module, self.file, self.name = module, file, name

    @classmethod
    def of(cls, function: Callable[..., Any]) -> "_Place":
        name = getattr(function, "__qualname__", repr(function))
        file = inspect.getsourcefile(function) if inspect.isfunction(function) else None
        if file is None or "<" in name:
            raise ConfigError(
                f"{name} cannot be run on other ranks: it has to be a function at the top level of a module's file, "
                "not a lambda, a local function or a callable object; pass what it needs as arguments"
            )
        return cls(function.__module__, str(Path(file).resolve()), name)

    def find(self) -> Callable[..., Any]:
        found: Any = self._load()
        for part in self.name.split("."):
            found = getattr(found, part)
        function: Callable[..., Any] = found
        return function

    def _load(self) -> ModuleType:
        """The module by its name if that leads to the same file, else from the file, under that name."""
        if self.module != "__main__":
            try:
                module = importlib.import_module(self.module)
            except ImportError:
                pass
            else:
                if Path(getattr(module, "__file__", None) or "").resolve() == Path(self.file):
                    return module
        name = "scrimp_testing_ranks_main" if self.module == "__main__" else self.module
        spec = importlib.util.spec_from_file_location(name, self.file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return module


def _run_rank(
    sender: Connection,
    place: _Place,
    payload: bytes,
    rank: int,
    world_size: int,
    rendezvous: str,
    timeout_seconds: float,
) -> None:
    """What each process does, and says to its parent.

    Results are pickled here, because torch would otherwise pass tensors as handles that die with this process. A
    failure is told before the group is left, and with its time, so that the parent knows it from the complaints of
    other ranks about a lost peer.
    """
    try:
        torch.set_num_threads(1)
        if sys.platform == "linux":
            os.environ.setdefault(
                "GLOO_SOCKET_IFNAME", "lo"
            )  # a host name that resolves nowhere is common in containers
        function = place.find()
        arguments = pickle.loads(payload)  # noqa: S301 - made by our parent process
        timeout = timedelta(seconds=timeout_seconds)
        dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=world_size, timeout=timeout)
        message = pickle.dumps((True, function(rank, *arguments)))
        dist.barrier()
    except BaseException:
        message = pickle.dumps((False, (time.monotonic(), traceback.format_exc())))
    sender.send_bytes(message)
    sender.close()
    if dist.is_initialized():
        dist.destroy_process_group()


def _collect(receivers: list[Connection], timeout_seconds: float) -> list[Any]:
    """One result per rank; the first failure ends the wait."""
    results: dict[int, Any] = {}
    deadline = time.monotonic() + timeout_seconds
    while len(results) < len(receivers):
        waiting = {receiver: rank for rank, receiver in enumerate(receivers) if rank not in results}
        ready = wait(list(waiting), timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            late = ", ".join(str(rank) for rank in waiting.values())
            raise AssertionError(f"rank {late} of {len(receivers)} was not done after {timeout_seconds:g} seconds")
        failures: list[tuple[float, int, str]] = []
        for receiver, rank in waiting.items():
            if receiver not in ready:
                continue
            try:
                succeeded, result = pickle.loads(receiver.recv_bytes())  # noqa: S301 - made by our child process
            except EOFError:
                raise AssertionError(f"rank {rank} of {len(receivers)} died without a word") from None
            if succeeded:
                results[rank] = result
            else:
                at, told = result
                failures.append((at, rank, told))
        if failures:
            _, rank, told = min(failures)
            raise AssertionError(f"rank {rank} of {len(receivers)} failed:\n{told}")
    return [results[rank] for rank in range(len(receivers))]
