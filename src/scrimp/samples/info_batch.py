"""InfoBatch by its name."""

from typing import Literal

from scrimp.samples.pruner import SamplePruner
from scrimp.samples.rules.mean_threshold import MeanThreshold


class InfoBatch(SamplePruner):
    """The method of the InfoBatch paper, in three lines of anybody's loop: SamplePruner with the rule MeanThreshold.

    ::

        pruner = scrimp.InfoBatch(len(train_set), num_epochs=200)
        loader = DataLoader(train_set, batch_size=128, sampler=pruner)
        loss = pruner.reduce(losses)                          # in the loop; losses: one value per sample

    Args: prune_ratio - fraction of the samples below the mean loss that an epoch leaves out. Everything else, and what
        may go wrong, is described at SamplePruner.
    Source: InfoBatch: Lossless Training Speed Up by Unbiased Dynamic Data Pruning (ICLR 2024, arXiv 2303.04947).
    """

    def __init__(
        self,
        num_samples: int,
        num_epochs: float,
        *,
        prune_ratio: float = 0.5,
        anneal: float = 0.125,
        seed: int = 0,
        scale: Literal["sum", "constant"] = "sum",
        rank: int | None = None,
        world_size: int | None = None,
        shard_scores: bool = False,
    ) -> None:
        super().__init__(
            num_samples,
            num_epochs,
            MeanThreshold(prune_ratio),
            anneal=anneal,
            seed=seed,
            scale=scale,
            rank=rank,
            world_size=world_size,
            shard_scores=shard_scores,
        )
