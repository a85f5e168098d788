"""Training loops for tests of pruning, and data sets that know which sample they give."""

import torch
from torch.utils.data import Dataset


class Numbered(Dataset):
    """Sample i is (i, i)."""

    def __init__(self, num_samples: int) -> None:
        self.num_samples = num_samples

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: int) -> tuple[int, int]:
        assert isinstance(index, int)
        return index, index


class NumberedInBatches(Numbered):
    """With the batched access that Hugging Face data sets have."""

    def __getitems__(self, indices: list[int]) -> list[tuple[int, int]]:
        return [(index, index) for index in indices]


def collate_dicts(samples: list[tuple[int, int]]) -> dict[str, torch.Tensor]:
    """Batches as dicts."""
    return {"index": torch.tensor([sample[0] for sample in samples])}


def loss_of(index: torch.Tensor, epoch: int) -> torch.Tensor:
    """A loss that tells its sample and epoch, exact in 16 bits for up to 128 samples."""
    return (index % 128 + 1).float() * 2.0**-epoch


def train_epoch(pruner, loader, epoch: int, *, stop_after: int | None = None) -> tuple[list[int], list[float]]:
    """The samples that were trained and the batch losses, in order."""
    seen, losses = [], []
    for number, batch in enumerate(loader):
        if number == stop_after:
            break
        index = batch["index"] if isinstance(batch, dict) else batch[0]
        losses.append(float(pruner.reduce(loss_of(index, epoch))))
        seen += index.tolist()
    return seen, losses
