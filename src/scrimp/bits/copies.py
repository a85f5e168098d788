"""What else has to follow when channels die: averaged copies, and the other ranks."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from scrimp._core import ranks
from scrimp._core.structure import Copy, copied_tensors, read_structure
from scrimp._core.structure_plan import named_tensors
from scrimp.bits.layers import unique_layers


@torch.no_grad()
def settle_dead_in_copies_(model: nn.Module, copies: Iterable[Copy]) -> None:
    """Give channels that are dead in ``model`` the same bits in each copy, so that they are dead there, too.

    An average of the bits still falls for long after a channel has died, through depths at which its weights are
    nothing but noise; and training that goes on from the average (Lookahead) would have the channel back.

    Copies that do not hold a tensor, or not in the model's shape, keep what they have. No host sync.
    """
    tensors = named_tensors(model)
    held = [copied_tensors(copy) for copy in copies]
    for layer in unique_layers(model):
        dead = layer.dead
        for name in layer.parameter_names:
            for own in held:
                value = own.get(name)
                if isinstance(value, Tensor) and value.shape == dead.shape:
                    value.copy_(torch.where(dead.to(value.device), tensors[name].to(value), value))


def same_structure_on_all_ranks(model: nn.Module) -> str:
    """The digest of the structure of ``model``, after making sure that it is the same on every rank.

    Call it after a removal (``remove_dead_channels_`` compares what it is about to do, not what others did) and after
    restoring a shrunk model, before it is wrapped in DistributedDataParallel, which would otherwise wait forever or mix
    up gradients. ``model`` may be wrapped. Without torch.distributed it only computes the digest.

    Raises: ConfigError - the ranks differ; on all of them. Cost: two small collectives.
    """
    inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    digest = read_structure(inner).digest()
    ranks.assert_same_on_all_ranks(digest, "the structure of the model")
    return digest
