"""What a language model writes, as a first look at what it has learned, and at what a restore would make of it."""

from collections.abc import Mapping
from itertools import chain

import torch
from torch import Tensor
from torch.func import functional_call

from scrimp._core.rng import generator
from scrimp.checkpoints import CheckpointStore
from scrimp.errors import CheckpointNotFoundError, FormatError
from scrimp.train.data import Dataset
from scrimp.train.job import Job


@torch.inference_mode()
def sample_text(
    job: Job,
    dataset: Dataset,
    num_chars: int = 400,
    temperature: float = 0.8,
    *,
    weights: Mapping[str, Tensor] | None = None,
) -> str:
    """``num_chars`` characters that follow the first context of the held-out text, drawn with a fixed seed.

    ``weights`` take the place of the model's own, by name.

    Cost: one forward pass of one context per character; a second or so for a small model on a CPU.
    """
    context_length = job.config.context_length
    tokens = dataset.test.inputs[:context_length].long()[None].to(job.device)
    draw = generator(job.config.seed, "sample_text")
    was_training = job.model.training
    job.model.eval()
    with job.precision():
        for _ in range(num_chars):
            outputs = functional_call(job.model, dict(weights or {}), (tokens[:, -context_length:],))
            logits = outputs[:, -1].float().cpu()
            chosen = torch.multinomial(torch.softmax(logits / temperature, dim=-1), 1, generator=draw)
            tokens = torch.cat([tokens, chosen.to(job.device)], dim=1)
    job.model.train(was_training)
    return dataset.decode(tokens[0, context_length:].cpu())


def restored_weights(job: Job, checkpoints: CheckpointStore) -> dict[str, Tensor] | None:
    """The model's parameters and buffers as the history has the newest checkpoint; None where it has every bit.

    None as well where the history is broken: the run, whose exact copy is apart, has finished all the same.
    Cost: decodes the weights alone, once per checkpoint since the last keyframe.
    """
    try:
        if not checkpoints.describe().exact_bytes:
            return None
        stored = checkpoints.load(only="model", history=True)["model"]
    except (FormatError, CheckpointNotFoundError):
        return None
    named = chain(job.model.named_parameters(), job.model.named_buffers())  # tied ones by one name
    return {name: stored[name].to(job.device) for name, _ in named if name in stored}
