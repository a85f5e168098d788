"""Claims, on one core: the default codec writes at least 0.5 GB of float32 state per second and reads at least 0.3; its
symbols take at most 2 % more than their order-0 entropy; it needs less memory than one more copy of the weights; a save
behind training holds it up by at most 5 % of a step, one save in 50 steps.

How. Matrices of a transformer block with the statistics of training (rows and columns of gradients have scales of their
own, first moments of about a quarter of the root of second ones, a step of normal differences from the base), as AdamW
and as SGD with momentum keep them. Codecs, zstd at level 3 of the raw bytes, and ``torch.save`` to memory take turns in
one process on one thread; what counts is the thread's processor time, which other work on the machine disturbs least.
A hop is one payload of each matrix. Memory is the peak of the process above what it held before, less what the call
returns; matrices are coded one after another. The store saves the same matrices as an AdamW model, to disk, with and
without an exact copy of the newest; what it keeps in memory is counted too. Training is a character GPT of a million
parameters on 8 x 256 characters; it is held up while its state is copied. Entropy: two million symbols of known shares,
and the codes of the weights.

    python benchmarks/checkpoints_speed.py                 # about a minute and 1.5 GB
    python benchmarks/checkpoints_speed.py --width 256     # a small one
"""

import argparse
import ctypes
import gc
import io
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zstandard
from environment import RESULTS, facts, spread, write_result
from torch import nn
from torch.nn import functional

from scrimp._core.tensor_role import TensorRole
from scrimp.checkpoints import CheckpointStore, Codec, Encoded, ExCP, Group, Lossless, Residual
from scrimp.checkpoints.entropy import decode_symbols, encode_symbols, entropy_bits
from scrimp.checkpoints.payload import ByteReader
from scrimp.train.models.gpt import GPT

State = dict[str, torch.Tensor]
ROLES = {
    "weight": TensorRole.WEIGHT,
    "exp_avg": TensorRole.FIRST_MOMENT,
    "exp_avg_sq": TensorRole.SECOND_MOMENT,
    "momentum_buffer": TensorRole.MOMENTUM,
}
CODECS: dict[str, Codec] = {
    "Residual()": Residual(), "Residual.small()": Residual.small(), "Lossless()": Lossless(), "ExCP()": ExCP(),
}  # fmt: skip
SHARES = (0.01, 0.05, 0.1, 0.2, 0.45, 0.7)


def matrix_state(shape: tuple[int, int], optimizer: str, generator: torch.Generator) -> tuple[State, State]:
    """A matrix before and after some steps: base and state."""
    rows, columns = (torch.randn(size, generator=generator).mul_(0.7).exp_() for size in shape)
    scale = 1e-4 * rows[:, None] * columns
    weight = 0.02 * torch.randn(shape, generator=generator)
    after = {"weight": weight + 1e-3 * torch.randn(shape, generator=generator)}
    if optimizer == "adamw":
        after["exp_avg_sq"] = scale.square() * torch.randn(shape, generator=generator).mul_(0.5).exp_()
        after["exp_avg"] = 0.25 * after["exp_avg_sq"].sqrt() * torch.randn(shape, generator=generator)
    else:
        after["momentum_buffer"] = scale * torch.randn(shape, generator=generator)
    # moments forget where they were; second ones not quite
    before = {slot: tensor.roll(1, 0) for slot, tensor in after.items()} | {"weight": weight}
    if "exp_avg_sq" in after:
        before["exp_avg_sq"] = after["exp_avg_sq"] * torch.randn(shape, generator=generator).mul_(0.1).exp_()
    return before, after


def block_states(width: int, optimizer: str) -> list[tuple[State, State]]:
    """The matrices of one transformer block."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(3 * width, width), (width, width), (4 * width, width), (width, 4 * width)]
    return [matrix_state(shape, optimizer, generator) for shape in shapes]


def num_bytes(states: Sequence[tuple[State, State]]) -> int:
    return sum(tensor.numel() * tensor.element_size() for _, after in states for tensor in after.values())


def encode_all(codec: Codec, states: Sequence[tuple[State, State]]) -> list[Encoded]:
    return [
        codec.encode(Group(after, {slot: ROLES[slot] for slot in after}), base, previous=base) for base, after in states
    ]


def cpu_seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    begin = time.thread_time()
    result = call()
    return time.thread_time() - begin, result


def speed(width: int, optimizer: str, repeats: int) -> dict[str, Any]:
    """GB/s of each way to write and to read, in turns; and how many times smaller."""
    states = block_states(width, optimizer)
    raw_bytes = num_bytes(states)
    bases = [base for base, _ in states]
    raw = b"".join(tensor.numpy().tobytes() for _, after in states for tensor in after.values())
    tensors = [after for _, after in states]
    seconds: dict[str, dict[str, list[float]]] = {}
    stored: dict[str, int] = {}

    def note(name: str, write: float, read: float, size: int) -> None:
        of = seconds.setdefault(name, {"write": [], "read": []})
        of["write"].append(write)
        of["read"].append(read)
        stored[name] = size

    for _ in range(repeats + 1):
        for name, codec in CODECS.items():
            write, encoded = cpu_seconds(lambda codec=codec: encode_all(codec, states))
            payloads = [each.payload for each in encoded]
            del encoded
            read, _ = cpu_seconds(
                lambda codec=codec, payloads=payloads: [
                    codec.decode(payload, base) for payload, base in zip(payloads, bases, strict=True)
                ]
            )
            note(name, write, read, sum(map(len, payloads)))
        write, packed = cpu_seconds(lambda: zstandard.ZstdCompressor(level=3).compress(raw))
        read, _ = cpu_seconds(lambda packed=packed: zstandard.ZstdDecompressor().decompress(packed))
        note("zstd-3 of the raw state", write, read, len(packed))
        file = io.BytesIO()
        write, _ = cpu_seconds(lambda file=file: torch.save(tensors, file))
        read, _ = cpu_seconds(lambda file=file: torch.load(io.BytesIO(file.getbuffer()), weights_only=True))
        note("torch.save to memory", write, read, file.getbuffer().nbytes)
    ways = {
        name: {
            "times_smaller": round(raw_bytes / stored[name], 2),
            "write_gb_per_second": spread([raw_bytes / 1e9 / t for t in of["write"][1:]]),  # the first one warms up
            "read_gb_per_second": spread([raw_bytes / 1e9 / t for t in of["read"][1:]]),
        }
        for name, of in seconds.items()
    }
    return {"width": width, "optimizer": optimizer, "raw_bytes": raw_bytes, "bytes_per_parameter": 4 * len(tensors[0]),
            "ways": ways}  # fmt: skip


def memory(width: int) -> dict[str, Any] | None:
    """Peak bytes of coding all matrices one after another, besides what is returned, over the bytes of the weights."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not status.exists():
        return None

    def read(field: str) -> int:
        match = re.search(rf"{field}:\s+(\d+) kB", status.read_text())
        assert match is not None
        return 1024 * int(match[1])

    states, libc = block_states(width, "adamw"), ctypes.CDLL(None)
    largest = 0
    for one in states:
        encode_all(Residual(), [one])  # warm
        gc.collect()
        if hasattr(libc, "malloc_trim"):
            libc.malloc_trim(0)  # else what is free but not given back hides what is needed
        try:
            reset.write_text("5")  # forget the peak so far
        except OSError:
            return None
        before = read("VmRSS")
        encoded = encode_all(Residual(), [one])
        returned = sum(len(e.payload) + sum(t.numel() * 4 for t in e.decoded.values()) for e in encoded)
        largest = max(largest, read("VmHWM") - before - returned)
        del encoded
    weight_bytes = sum(after["weight"].numel() * 4 for _, after in states)
    return {"peak_bytes": largest, "weight_bytes": weight_bytes, "peak_over_weights": round(largest / weight_bytes, 3)}


def store_speed(width: int, repeats: int) -> dict[str, Any]:
    """GB/s of saving a block's matrices as a difference; and what stays in memory, over the bytes of the weights."""
    states, model = block_states(width, "adamw"), nn.Module()
    for number, (before, _) in enumerate(states):
        model.register_parameter(f"matrix{number}", nn.Parameter(before["weight"].clone()))
    optimizer = torch.optim.AdamW(model.parameters())
    rows = {}
    for name, exact_tail in (("history alone", 0), ("history and an exact copy", 1)):
        rates, size = [], 0
        with tempfile.TemporaryDirectory() as folder:
            store = CheckpointStore(folder, exact_tail=exact_tail)
            for step in range(repeats + 2):
                for parameter, pair in zip(model.parameters(), states, strict=True):
                    slots = pair[step % 2]
                    with torch.no_grad():
                        parameter.copy_(slots["weight"])
                    moments = {slot: slots[slot].clone() for slot in ("exp_avg", "exp_avg_sq")}
                    optimizer.state[parameter] = {"step": torch.tensor(float(step)), **moments}
                seconds, report = cpu_seconds(lambda s=store, n=step: s.save(n, model=model, optimizer=optimizer))
                if step > 1:  # the first is a keyframe, the second warms up
                    rates.append(report.raw_bytes / 1e9 / seconds)
                    size = report.history_bytes
            recent = store._writer._recent
            assert recent is not None
            kept = [*recent.tensors.values(), *recent.true.values()]
            kept_bytes = sum(tensor.numel() * tensor.element_size() for slots in kept for tensor in slots.values())
        weight_bytes = sum(4 * parameter.numel() for parameter in model.parameters())
        rows[name] = {
            "write_gb_per_second": spread(rates), "times_smaller": round(report.raw_bytes / size, 2),
            "kept_in_memory_over_weights": round(kept_bytes / weight_bytes, 3),
        }  # fmt: skip
    return rows


def held_up(repeats: int) -> dict[str, Any]:
    """Processor seconds of a training step, and seconds that a save behind training holds it up."""
    model = GPT(vocab_size=65, context_length=256, width=128, depth=5, num_heads=4)
    optimizer = torch.optim.AdamW(model.parameters())
    batch = torch.randint(0, 65, (8, 257), generator=torch.Generator().manual_seed(0))
    steps, held = [], []

    def train() -> None:
        loss = functional.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    with tempfile.TemporaryDirectory() as folder:
        store = CheckpointStore(folder)
        for number in range(repeats + 1):
            seconds, _ = cpu_seconds(train)
            waited, _ = cpu_seconds(lambda n=number: store.save(n, model=model, optimizer=optimizer, wait=False))
            store.wait()
            if number:
                steps.append(seconds)
                held.append(waited)
    step, save = spread(steps), spread(held)
    return {
        "step_seconds": step, "held_seconds": save, "saves_per_step": 1 / 50,
        "held_share_of_a_step": round(float(save["median"]) / 50 / float(step["median"]), 6),
    }  # fmt: skip


def entropy(num_symbols: int) -> list[dict[str, Any]]:
    """Size over the bound and speed of symbols of which a share differs from the most frequent one."""
    random = np.random.default_rng(0)
    sizes = np.clip(np.rint(np.abs(random.laplace(0, 2, num_symbols))) + 1, 1, 12)
    rows = []
    for share in SHARES:
        codes = np.where(random.random(num_symbols) < share, sizes * random.choice([-1, 1], num_symbols), 0)
        symbols = (codes + 128).astype(np.uint8)
        writes, reads = [], []
        for _ in range(4):
            write, data = cpu_seconds(lambda symbols=symbols: encode_symbols(symbols))
            read, back = cpu_seconds(lambda data=data: decode_symbols(ByteReader(data), num_symbols))
            assert np.array_equal(back, symbols)
            writes.append(num_symbols / 1e6 / write)
            reads.append(num_symbols / 1e6 / read)
        bound = entropy_bits(symbols)
        rows.append(
            {
                "share": share,
                "entropy_bits_per_symbol": round(bound / num_symbols, 4),
                "size_over_entropy": round(8 * len(data) / bound, 5),
                "write_million_per_second": round(max(writes)),
                "read_million_per_second": round(max(reads)),
            }
        )
    return rows


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="How fast checkpoints are coded, and how near to their entropy.")
    parser.add_argument("--width", type=int, default=1024, help="of the transformer block")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--symbols", type=int, default=2_000_000)
    parser.add_argument("--out", type=Path, default=RESULTS / "checkpoints_speed.json")
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    speeds = [speed(options.width, optimizer, options.repeats) for optimizer in ("adamw", "sgd")]
    peak, symbols = memory(options.width), entropy(options.symbols)
    store, held = store_speed(options.width, options.repeats), held_up(options.repeats)
    ours = [of["ways"]["Residual()"] for of in speeds]
    claims = {
        "writes_0.5_gb_per_second": all(way["write_gb_per_second"]["median"] >= 0.5 for way in ours),
        "reads_0.3_gb_per_second": all(way["read_gb_per_second"]["median"] >= 0.3 for way in ours),
        "within_2_percent_of_entropy": all(row["size_over_entropy"] <= 1.02 for row in symbols),
        "store_keeps_at_most_one_copy_of_the_weights": (
            store["history and an exact copy"]["kept_in_memory_over_weights"] <= 1
        ),
        "held_up_by_at_most_5_percent_of_a_step": held["held_share_of_a_step"] <= 0.05,
        "memory_below_the_weights": None if peak is None else peak["peak_over_weights"] <= 1,
    }
    for of in speeds:
        for name, way in of["ways"].items():
            write, read = way["write_gb_per_second"]["median"], way["read_gb_per_second"]["median"]
            print(f"{of['optimizer']:6} {name:24} {way['times_smaller']:7.2f} x  {write:6.3f} GB/s in {read:6.3f} out")
    print(*symbols, peak, store, held, claims, sep="\n")
    result = {"speed": speeds, "memory": peak, "store": store, "held_up": held, "symbols": symbols, "claims": claims}
    write_result(options.out, {**facts(threads=1), **result})


if __name__ == "__main__":
    main()
