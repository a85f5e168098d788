"""Loss and accuracy on the held-out data."""

import torch

from scrimp._core.ranks import all_reduce_sum_, rank, world_size
from scrimp.train.job import Job
from scrimp.train.parallel import share_buffers


def evaluate(job: Job) -> dict[str, float]:
    """``test_loss_nats`` and, for images, ``test_accuracy`` (a fraction), over the whole test split.

    Under DDP the ranks take the batches in turn, with the buffers of rank 0. The model is left in training mode.
    Cost: one forward pass over the split, one host sync.
    """
    share_buffers(job.model)
    sums = torch.zeros(3, dtype=torch.float32 if job.device.type == "mps" else torch.float64, device=job.device)
    job.model.eval()
    # not inference_mode: what a model keeps from one call to the next, a table say, has to serve in training too
    with torch.no_grad(), job.precision():
        for number, batch in enumerate(job.test_loader):
            if number % world_size() != rank():
                continue
            inputs, targets = job.task.split(batch.inputs, batch.targets)
            outputs = job.model(inputs)
            sums[0] += job.task.losses(outputs, targets, smoothed=False).sum(dtype=sums.dtype)
            num_correct = job.task.num_correct(outputs, targets)
            if num_correct is not None:
                sums[1] += num_correct
            sums[2] += len(inputs)
    job.model.train()
    all_reduce_sum_(sums)
    loss, correct, count = sums.tolist()
    result = {"test_loss_nats": loss / count}
    if job.task.kind == "images":
        result["test_accuracy"] = correct / count
    return result
