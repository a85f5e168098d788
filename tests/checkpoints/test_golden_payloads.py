"""Payloads that were written once are read for ever, to the same bits; so is what they were made of, anywhere.

The file beside this one is of payload version 1. A release that changes the format adds a file and keeps this one.
"""

import base64
import hashlib
import json
from pathlib import Path

import pytest
import torch

from scrimp._core.tensor_role import TensorRole
from scrimp.checkpoints import Bound, ExCP, Group, Lossless, Residual

GOLDEN = json.loads((Path(__file__).parent / "golden" / "codec-payloads-1.json").read_text())


def noise(numel, start):
    """The same integers everywhere: a generator that is written out."""
    values, state = [], start
    for _ in range(numel):
        state = (1103515245 * state + 12345) % 2**31
        values.append(state >> 8)
    return torch.tensor(values, dtype=torch.float64).div(2**22).sub(1)  # -1 ... 1


def cases():
    """A codec, a group and its base for every way of coding."""
    shape = (72, 72)
    base = noise(5184, 1).view(shape).float()
    moved = base + (noise(5184, 2) ** 3).view(shape).float() / 64
    second = (noise(5184, 3) ** 4).view(shape).float() * 2.0**-20 * torch.arange(1, 73)[:, None]
    second[5, 7], second[6] = float("nan"), 0.0
    adam = {
        "weight": moved,
        "exp_avg": (noise(5184, 4) ** 5).view(shape).float() * 2.0**-9,
        "exp_avg_sq": second,
        "step": torch.tensor(7.0),
    }
    roles = {
        "weight": TensorRole.WEIGHT, "exp_avg": TensorRole.FIRST_MOMENT, "exp_avg_sq": TensorRole.SECOND_MOMENT,
        "step": TensorRole.EXACT, "momentum_buffer": TensorRole.MOMENTUM, "scores": TensorRole.SCORE,
    }  # fmt: skip
    long = noise(1 << 17, 5).view(256, 512).float()

    def group(tensors):
        return Group(tensors, {slot: roles[slot] for slot in tensors})

    plain = {**adam, "exp_avg_sq": second.nan_to_num(0.5)}
    sgd = {"weight": moved.bfloat16(), "momentum_buffer": adam["exp_avg"]}
    return {
        "lossless": (Lossless(), group({"weight": moved[:20]}), {"weight": base[:20]}),
        "keyframe": (Residual(), group({"step": adam["step"], "weight": moved[:3]}), None),
        "residual": (Residual(), group(adam), {"weight": base}),
        "steep": (Residual(), group(plain), {"weight": base}),
        "small": (Residual.small(), group(adam), {"weight": base}),
        "sgd": (Residual(momentum=Bound.of_rms(0.5)), group(sgd), {"weight": base.bfloat16()}),
        "pairs": (Residual(error=Bound.absolute(0.25)), group({"weight": long}), {"weight": torch.zeros(256, 512)}),
        "excp": (ExCP(), group(plain), {"weight": base}),
        "excp without codebook": (ExCP(num_bits=None), group(plain), {"weight": base}),
        "scores": (Lossless(), group({"scores": moved.bfloat16()}), {"scores": base.bfloat16()}),
    }


def digest(tensor):
    return hashlib.sha256(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()).hexdigest()


@pytest.fixture(scope="module")
def made():
    return cases()


@pytest.mark.parametrize("name", GOLDEN)
def test_old_payloads_are_read_to_the_same_bits(name, made):
    codec, group, base = made[name]
    decoded = codec.decode(base64.b64decode(GOLDEN[name]["payload"]), base)
    assert {slot: digest(tensor) for slot, tensor in decoded.items()} == GOLDEN[name]["sha256"]
    assert decoded.keys() == group.tensors.keys()


def test_every_case_is_there(made):
    assert GOLDEN.keys() == made.keys()
