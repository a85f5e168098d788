"""Claims: at every point of ExCP's trade-off between bytes and weight error there is a setting of ``Residual`` that
takes fewer bytes at a lower error; and along 50 checkpoints the error of ``Residual`` stays below 1.2 times that of the
first, where ExCP's grows.

How. A character GPT of a million parameters is trained on a text file with AdamW for 1,020 steps, and its state
recorded every 20. Each codec then codes the same recorded states, each from the reconstruction of its own last
checkpoint. Curves are over checkpoints 100 steps apart. Bytes are whole payloads (weights and both moments, exact
parts included); the error is that of all weights, as a root mean square over that of their true movement since the last
checkpoint.

    python benchmarks/checkpoints_tradeoff.py --data path/to/text.txt      # about six minutes and 1.5 GB
"""

import argparse
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from environment import RESULTS, facts, write_result
from torch import Tensor, nn
from torch.nn import functional

from scrimp._core.tensor_role import TensorRole, optimizer_slot_role
from scrimp.checkpoints import Bound, Codec, ExCP, Group, Lossless, Residual
from scrimp.train.models.gpt import GPT

LENGTH = 128  # characters of a sample
States = list[dict[str, dict[str, Tensor]]]
ERRORS = (0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 1.2, 1.5, 1.8, 2.4, 3.0, 4.5, 6.0, 9.0, 15.0, 25.0)
RESIDUALS: dict[str, Codec] = {
    f"Residual, {error} x movement": Residual(error=Bound.of_movement(error), first_moment=None) for error in ERRORS
}
EXCPS: dict[str, Codec] = {
    **{f"ExCP, cap {cap}": ExCP(alpha=1e3, cap=cap) for cap in (0.25, 0.5, 1.0, 1.5, 2.0, 2.5, 3.5)},
    **{f"ExCP, cap 2.5, {bits} bits": ExCP(alpha=1e3, num_bits=bits) for bits in (2, 3)},
    "ExCP, alpha 5e-5": ExCP(),
}
OTHERS: dict[str, Codec] = {"Residual()": Residual(), "Residual.small()": Residual.small(), "Lossless()": Lossless()}
CHAINS: dict[str, Codec] = {
    "Residual()": Residual(), "Residual.small()": Residual.small(), "ExCP, cap 2.5": ExCP(alpha=1e3),
}  # fmt: skip


def record(path: Path, num_states: int, every: int, width: int, beta2: float) -> States:
    """Train and keep a copy of weights and moments of each parameter every so many steps."""
    vocabulary, tokens = np.unique(np.frombuffer(path.read_bytes(), dtype=np.uint8), return_inverse=True)
    data, generator = torch.from_numpy(tokens), torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = GPT(vocab_size=len(vocabulary), context_length=LENGTH, width=width)
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = [
        {"params": [p for p in names if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in names if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, beta2))
    num_steps = every * num_states
    states: States = []
    for step in range(num_steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1, (step + 1) / 50) * (0.55 + 0.45 * math.cos(math.pi * step / num_steps))
        starts = torch.randint(0, len(data) - LENGTH - 1, (8,), generator=generator)
        batch = torch.stack([data[start : start + LENGTH + 1] for start in starts.tolist()])
        loss = functional.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % every == 0:
            states.append({name: _slots(p, optimizer.state[p]) for p, name in names.items()})
            print(f"step {step + 1}: loss {loss.item():.3f}")
    return states


def record_once(file: Path | None, make: Callable[[], States]) -> States:
    """The states that were recorded into a file, or else made now (and written there)."""
    if file is not None and file.exists():
        states: States = []
        for name, tensor in sorted(safetensors.torch.load_file(file).items()):
            number, parameter, slot = name.split("/")
            if len(states) == int(number):
                states.append({})
            states[-1].setdefault(parameter, {})[slot] = tensor
        return states
    states = make()
    if file is not None:
        flat = {
            f"{number:06d}/{name}/{slot}": tensor
            for number, state in enumerate(states)
            for name, slots in state.items()
            for slot, tensor in slots.items()
        }
        safetensors.torch.save_file(flat, file)
    return states


def _slots(parameter: Tensor, state: Mapping[str, Any]) -> dict[str, Tensor]:
    slots = {"weight": parameter, "exp_avg": state["exp_avg"], "exp_avg_sq": state["exp_avg_sq"]}
    return {slot: tensor.detach().clone() for slot, tensor in slots.items()}


def chain(codec: Codec, states: States) -> dict[str, Any]:
    """Code the states one after another; bytes and errors of each delta."""
    bases, num_bytes, errors = states[0], [], []
    raw_bytes = sum(tensor.numel() * 4 for slots in states[0].values() for tensor in slots.values())
    for before, state in itertools.pairwise(states):
        coded, wrong, moved = 0, 0.0, 0.0
        decoded = {}
        for name, slots in state.items():
            roles = {s: TensorRole.WEIGHT if s == "weight" else optimizer_slot_role(s) for s in slots}
            encoded = codec.encode(Group(slots, roles), bases[name], previous=before[name])
            decoded[name] = dict(encoded.decoded)
            coded += len(encoded.payload)
            wrong += float((decoded[name]["weight"] - slots["weight"]).double().square().sum())
            moved += float((slots["weight"] - before[name]["weight"]).double().square().sum())
        bases = decoded
        num_bytes.append(coded)
        errors.append(round(math.sqrt(wrong / moved), 5))
    mean_bytes = sum(num_bytes) / len(num_bytes)
    return {
        "times_smaller": round(raw_bytes / mean_bytes, 2), "mean_bytes": round(mean_bytes),
        "mean_error": round(sum(errors) / len(errors), 5), "last_error": errors[-1], "errors": errors,
    }  # fmt: skip


def is_beaten(point: Mapping[str, Any], curve: Sequence[Mapping[str, Any]]) -> bool:
    """Whether some point of the curve has fewer bytes and a lower error."""
    return any(o["mean_bytes"] < point["mean_bytes"] and o["mean_error"] < point["mean_error"] for o in curve)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Bytes against weight error, ExCP and Residual.")
    parser.add_argument("--data", type=Path, required=True, help="a text file")
    parser.add_argument("--states", type=Path, help="a file to keep what was recorded for another run")
    parser.add_argument("--num-states", type=int, default=51)
    parser.add_argument("--every", type=int, default=20, help="steps between two states")
    parser.add_argument("--stride", type=int, default=5, help="states between two checkpoints of the curves")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--beta2", type=float, default=0.999)
    parser.add_argument("--out", type=Path, default=RESULTS / "checkpoints_tradeoff.json")
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    states = record_once(
        options.states,
        lambda: record(options.data, options.num_states, options.every, options.width, options.beta2),
    )
    curves: dict[str, dict[str, Any]] = {}
    for name, codec in {**RESIDUALS, **EXCPS, **OTHERS}.items():
        curves[name] = chain(codec, states[:: options.stride])
        shown = {key: value for key, value in curves[name].items() if key != "errors"}
        print(f"{name}: {shown}")
    chains = {name: chain(codec, states) for name, codec in CHAINS.items()}
    for name, of in chains.items():
        print(f"{name}: errors {of['errors'][0]} ... {of['errors'][-1]} along {len(of['errors'])} checkpoints")
    ours = [curves[name] for name in RESIDUALS]
    flat = {name: max(of["errors"]) / of["errors"][0] for name, of in chains.items()}
    claims = {
        "beats_excp_at_every_point": all(is_beaten(curves[name], ours) for name in EXCPS),
        "error_along_the_chain_below_1.2_of_the_first": all(flat[n] < 1.2 for n in ("Residual()", "Residual.small()")),
    }
    print(claims)
    setup = {
        "num_states": options.num_states, "every_steps": options.every, "stride": options.stride,
        "width": options.width, "beta2": options.beta2, "seed": 0,
    }  # fmt: skip
    growth = {name: round(value, 3) for name, value in flat.items()}
    result = {"setup": setup, "curves": curves, "chains": chains, "largest_over_first_error": growth, "claims": claims}
    write_result(options.out, {**facts(threads=1), **result})


if __name__ == "__main__":
    main()
