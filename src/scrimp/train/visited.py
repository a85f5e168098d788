"""How often samples are visited when they are pruned, and pictures of those visited most and least."""

import base64
import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Int16, Int64, UInt8
from torch import Tensor
from torch.nn import functional

from scrimp.report.png import encode_png
from scrimp.train.data import Dataset
from scrimp.train.job import Job, Seams

VISIT_COUNTS = "visit_counts"  # their name in checkpoints
_NUM_COUNTED = 2000  # samples, spread over the data: their counts have to be in every checkpoint
_NUM_SHOWN = 20
_LARGEST_SIDE = 48  # pixels of a picture


class VisitCounts:
    """Counts of visits, epoch by epoch, of at most 2,000 samples that lie evenly in the training data.

    A last epoch that is trained in part counts as planned. Cost: one pass over the plan at the end of an epoch.
    """

    def __init__(self, num_samples: int) -> None:
        self.num_samples = num_samples
        num_counted = min(num_samples, _NUM_COUNTED)
        self.index: Int64[Tensor, " counted"] = torch.arange(num_counted) * num_samples // num_counted
        self.counts: Int16[Tensor, " counted"] = torch.zeros(num_counted, dtype=torch.int16)

    def count_epoch(self, planned: Int64[Tensor, " visits"]) -> None:
        """Count the visits of one epoch."""
        every = torch.bincount(planned.cpu(), minlength=self.num_samples)
        self.counts += every[self.index].to(torch.int16)

    def state_dict(self) -> dict[str, Any]:
        """The counts so far."""
        return {"counts": self.counts.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``."""
        self.counts = state["counts"].clone()


def with_visit_counts(seams: Seams, num_samples: int) -> Seams:
    """``seams`` that count, for a run that prunes samples."""
    counts = VisitCounts(num_samples)

    def count(job: Job) -> Mapping[str, Any]:
        counts.count_epoch(job.loader.plan.epoch_indices())
        return {}

    state = {**seams.state, VISIT_COUNTS: counts}
    return dataclasses.replace(seams, epoch_facts=(*seams.epoch_facts, count), state=state)


def visited_facts(counts: VisitCounts, dataset: Dataset) -> dict[str, Any]:
    """For the record: how many samples had how many visits and, for images, those visited most and least, as PNG."""
    order = torch.argsort(counts.counts, stable=True)
    histogram = torch.bincount(counts.counts.long())
    facts: dict[str, Any] = {
        "num_counted": counts.counts.numel(), "num_samples": counts.num_samples, "histogram": histogram.tolist(),
    }  # fmt: skip
    if dataset.kind == "images":
        shown = min(_NUM_SHOWN, order.numel() // 2)
        for name, places in (("least", order[:shown]), ("most", order[order.numel() - shown :].flip(0))):
            facts[name] = [_picture(counts, int(place), dataset) for place in places]
    return facts


def _picture(counts: VisitCounts, place: int, dataset: Dataset) -> dict[str, Any]:
    sample = int(counts.index[place])
    targets = dataset.train.targets
    return {
        "sample": sample,
        "class": "" if targets is None else str(dataset.classes[int(targets[sample])]),
        "visits": int(counts.counts[place]),
        "png": base64.b64encode(_png(dataset.train.inputs[sample])).decode(),
    }


def _png(image: UInt8[Tensor, "channels height width"]) -> bytes:
    num_channels = 3 if image.shape[0] >= 3 else 1
    image = image[:num_channels]
    side = max(image.shape[1:])
    if side > _LARGEST_SIDE:
        size = [max(1, round(length * _LARGEST_SIDE / side)) for length in image.shape[1:]]
        image = functional.interpolate(image[None].float(), size=size, mode="area")[0].round().to(torch.uint8)
    pixels = image.permute(1, 2, 0).contiguous().numpy().tobytes()
    return encode_png(pixels, width=image.shape[2], height=image.shape[1], num_channels=num_channels)
