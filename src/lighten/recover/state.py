"""Training between two steps."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lighten.recover.ema import Average


@dataclass(kw_only=True)
class State:
    """All that the next step depends on, beside torch's random generator.

    step: finished steps, of all epochs. order: draws the order of the samples; order_state: its state when the epoch
    under way began. average: of the weights, where it is asked for. scores: of the finished epochs. best: the tensors
    of the best of them, by name.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    order: torch.Generator
    order_state: Tensor
    average: Average | None = None
    step: int = 0
    scores: list[float | None] = field(default_factory=list)
    best: dict[str, Tensor] | None = None
