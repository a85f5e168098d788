"""The few things that several processes say to each other. All work, trivially, without torch.distributed."""

import contextlib
import hashlib
from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from jaxtyping import Int64
from torch import Tensor

from scrimp.errors import ConfigError


def world_size() -> int:
    """The number of processes that train together; 1 without torch.distributed."""
    return dist.get_world_size() if _is_distributed() else 1


def rank() -> int:
    """The number of this process, from 0; 0 without torch.distributed."""
    return dist.get_rank() if _is_distributed() else 0


def is_main() -> bool:
    """Whether this is the process that writes files and shows progress (rank 0)."""
    return rank() == 0


def barrier() -> None:
    """Wait until every rank has come here. Cost: one collective."""
    if _is_distributed():
        dist.barrier()


def all_gather_ints(values: Int64[Tensor, " own"]) -> list[Int64[Tensor, " others"]]:
    """The values of every rank, in the order of the ranks, on the device of ``values``. Lengths may differ.

    Integers stay integers: indices above 2**24 would not survive a detour through float32.

    Cost: two collectives (lengths, then values padded to the longest); one host sync.
    """
    if not _is_distributed():
        return [values]
    device = _collective_device(values.device)
    own_length = torch.tensor([values.numel()], dtype=torch.int64, device=device)
    lengths = [torch.empty_like(own_length) for _ in range(world_size())]
    dist.all_gather(lengths, own_length)
    counts = [int(length) for length in lengths]
    padded = torch.zeros(max(counts), dtype=torch.int64, device=device)
    padded[: values.numel()] = values
    gathered = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(gathered, padded)
    return [part[:count].to(values.device) for part, count in zip(gathered, counts, strict=True)]


def all_to_all_ints(parts: Sequence[Int64[Tensor, " own"]]) -> list[Int64[Tensor, " others"]]:
    """Send ``parts[r]`` to rank r; returns what every rank sent here, in the order of the ranks. Lengths may differ.

    Args: parts - one for each rank, all on one device. Cost: two collectives (lengths, then values); one host sync.
    """
    if not _is_distributed():
        return list(parts)
    home = parts[0].device
    device = _collective_device(home)
    lengths = torch.tensor([part.numel() for part in parts], dtype=torch.int64, device=device)
    incoming = torch.empty_like(lengths)
    dist.all_to_all_single(incoming, lengths)
    sent, received = lengths.tolist(), incoming.tolist()
    values = torch.empty(sum(received), dtype=torch.int64, device=device)
    dist.all_to_all_single(values, torch.cat(list(parts)).to(device), received, sent)
    return list(values.to(home).split(received))


def all_reduce_sum_(values: Tensor) -> Tensor:
    """Replace ``values`` by their sum over all ranks, in place, and return them. Cost: one collective."""
    if _is_distributed():
        device = _collective_device(values.device)
        if values.device == device and values.is_contiguous():
            dist.all_reduce(values)
        else:
            moved = values.to(device).contiguous()
            dist.all_reduce(moved)
            values.copy_(moved)
    return values


def assert_same_on_all_ranks(digest: bytes | str, what: str) -> None:
    """Raise on every rank if ``digest`` differs between ranks.

    Args: digest - anything that stands for the thing compared: a checksum, a version, a whole JSON text.
        what - its name in the message, for example "the epoch's plan".
    Raises: ConfigError - the message lists the ranks that disagree with rank 0.
    Cost: two small collectives.
    """
    if not _is_distributed():
        return
    data = digest.encode() if isinstance(digest, str) else digest
    own = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little", signed=True)
    all_digests = [int(part) for part in all_gather_ints(torch.tensor([own], dtype=torch.int64))]
    others = [str(number) for number, other in enumerate(all_digests) if other != all_digests[0]]
    if others:
        raise ConfigError(
            f"{what} is not the same on all ranks: rank {', '.join(others)} of {len(all_digests)} differs from rank 0. "
            "Give every rank the same data, configuration and seed"
        )


@contextlib.contextmanager
def failing_together(what: str) -> Iterator[None]:
    """Raise on every rank when any of them raises in the block, so that none goes on alone and waits for the others.

    The block itself must not communicate, since a rank may leave it early.

    Raises: what was raised on this rank; ConfigError - it was on another one, named in the message.
    Cost: two small collectives.
    """
    error: Exception | None = None
    try:
        yield
    except Exception as raised:
        error = raised
    failed = [number for number, one in enumerate(all_gather_ints(torch.tensor([int(error is not None)]))) if one[0]]
    if error is not None:
        raise error
    if failed:
        raise ConfigError(
            f"{what} did not work on rank {', '.join(map(str, failed))}, so it was not done on this one either; the "
            "message there says why"
        )


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def _collective_device(device: torch.device) -> torch.device:
    """Where a tensor has to lie for the present backend: NCCL alone takes CUDA tensors only, Gloo alone CPU tensors."""
    backend = str(dist.get_backend())
    if backend == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu") if backend == "gloo" else device
