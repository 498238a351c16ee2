"""Who moves the weights, and how far in each step.

SGD with Nesterov momentum; the learning rate rises linearly and falls along half a cosine, step by step.
Sources: Loshchilov & Hutter, "SGDR", arXiv:1608.03983, for the cosine; Goyal et al., arXiv:1706.02677, for the rise.
"""

import math

import torch
from torch import nn

from lighten.errors import ConfigError
from lighten.recover.config import FineTuneConfig


def learning_rate(step: int, n_steps: int, config: FineTuneConfig) -> float:
    """The rate of step (from 0): a linear rise to config.lr, then half a cosine that would reach 0 at n_steps."""
    n_warmup = int(config.warmup * n_steps)
    if step < n_warmup:
        return config.lr * (step + 1) / n_warmup
    return config.lr * (1 + math.cos(math.pi * (step - n_warmup) / (n_steps - n_warmup))) / 2


def build_optimizer(model: nn.Module, config: FineTuneConfig) -> torch.optim.SGD:
    """The optimizer of the parameters that require a gradient.

    Raises:
        ConfigError: none does.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise ConfigError("No parameter of the model requires a gradient, so nothing can be trained. Unfreeze some.")
    # Decay keeps matrices small; on a bias or a batch norm's scale it only pulls the function towards zero.
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=True)
