"""Running means that live on the device, so that reading them is the only time the host waits."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from scrimp._core.ranks import all_reduce_sum_
from scrimp.errors import NonFiniteLossError


class RunningMetrics:
    """Loss and accuracy since the last ``read``, and the first step whose loss was not finite."""

    def __init__(self, device: torch.device) -> None:
        # sum of losses, number correct, samples, first bad step (or infinity): float64 where the device has it
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self._values = torch.zeros(4, dtype=dtype, device=device)
        self._values[3] = torch.inf

    def update(self, step: int, losses: Tensor, num_correct: Tensor | None) -> None:
        """Add one (part of a) batch. ``losses``: (batch,). No host sync."""
        with torch.no_grad():
            total = losses.detach().sum(dtype=self._values.dtype)
            self._values[0] += total
            if num_correct is not None:
                self._values[1] += num_correct
            self._values[2] += len(losses)
            bad = torch.where(torch.isfinite(total), torch.inf, float(step))
            self._values[3] = torch.minimum(self._values[3], bad.to(self._values.dtype))

    def read(self) -> dict[str, float]:
        """Mean ``loss`` in nats and ``accuracy`` over all ranks since the last call, which starts anew.

        Raises: NonFiniteLossError - names the step. Cost: one host sync; under DDP one all-reduce.
        """
        loss, correct, count = self._reduced()
        self._values[:3] = 0
        return {"loss": loss / max(count, 1), "accuracy": correct / max(count, 1)}

    def check_finite(self) -> None:
        """Raise NonFiniteLossError, on every rank, when a loss was NaN or infinite on any. Cost: as ``read``."""
        self._reduced()

    def _reduced(self) -> tuple[float, float, float]:
        sums = self._values.clone()
        sums[3] = torch.isfinite(self._values[3])  # 1 where a bad step is known
        all_reduce_sum_(sums)
        loss, correct, count, num_bad_ranks = sums.tolist()
        if num_bad_ranks or not math.isfinite(loss):
            first_bad = float(self._values[3])
            where = f"at step {int(first_bad)}" if math.isfinite(first_bad) else "on another process"
            raise NonFiniteLossError(
                f"the training loss became NaN or infinite {where}; training was stopped; what was saved before is "
                "intact. Lower --learning-rate, set --clip-norm, or look at the data of that step"
            )
        return loss, correct, count

    def state_dict(self) -> dict[str, Tensor]:
        """The sums so far."""
        return {"values": self._values.clone().cpu()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``."""
        self._values.copy_(state["values"])
