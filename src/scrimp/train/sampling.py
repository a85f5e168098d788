"""What a language model writes, as a first look at what it has learned."""

import torch

from scrimp._core.rng import generator
from scrimp.train.data import Dataset
from scrimp.train.job import Job


@torch.inference_mode()
def sample_text(job: Job, dataset: Dataset, num_chars: int = 400, temperature: float = 0.8) -> str:
    """``num_chars`` characters that follow the first context of the held-out text, drawn with a fixed seed.

    Cost: one forward pass of one context per character; a second or so for a small model on a CPU.
    """
    context_length = job.config.context_length
    tokens = dataset.test.inputs[:context_length].long()[None].to(job.device)
    draw = generator(job.config.seed, "sample_text")
    was_training = job.model.training
    job.model.eval()
    with job.precision():
        for _ in range(num_chars):
            logits = job.model(tokens[:, -context_length:])[:, -1].float().cpu()
            chosen = torch.multinomial(torch.softmax(logits / temperature, dim=-1), 1, generator=draw)
            tokens = torch.cat([tokens, chosen.to(job.device)], dim=1)
    job.model.train(was_training)
    return dataset.decode(tokens[0, context_length:].cpu())
