"""Who moves the weights, and how far in each step.

SGD with Nesterov momentum, or AdamW; the learning rate rises linearly and falls along half a cosine, step by step.
Sources: Loshchilov & Hutter, "SGDR", arXiv:1608.03983, for the cosine, and "Decoupled Weight Decay Regularization",
arXiv:1711.05101, for AdamW; Goyal et al., arXiv:1706.02677, for the rise.
"""

import math
from collections.abc import Callable

import torch
from torch import fx, nn

from lighten.errors import ConfigError
from lighten.recover.config import FineTuneConfig

CONVOLUTIONS = {torch.ops.aten.conv1d.default, torch.ops.aten.conv2d.default, torch.ops.aten.conv3d.default}
LAYER_NORMS = {torch.ops.aten.layer_norm.default, torch.ops.aten.rms_norm.default}
MakeOptimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
Schedule = Callable[[int, int], float]  # (steps done, all steps) -> factor of the rate


def suits_sgd(graph: fx.Graph) -> bool:
    """Whether a network with that graph of operators trains well by sgd: one of convolutions without layer norms.

    Others, transformers first of all, have gradients of very different sizes, which one rate does not serve.
    """
    targets = {node.target for node in graph.nodes}
    return bool(targets & CONVOLUTIONS) and not targets & LAYER_NORMS


def set_rates_(
    optimizer: torch.optim.Optimizer,
    peaks: list[float],
    step: int,
    n_steps: int,
    warmup: float,
    schedule: Schedule | None,
) -> float:
    """Give each group of parameters its rate in step (from 0); returns that of the first. peaks: their highest."""
    factor = None if schedule is None else schedule(step, n_steps)
    for group, peak in zip(optimizer.param_groups, peaks, strict=True):
        group["lr"] = learning_rate(step, n_steps, peak, warmup) if factor is None else peak * factor
    rate: float = optimizer.param_groups[0]["lr"]
    return rate


def learning_rate(step: int, n_steps: int, peak: float, warmup: float) -> float:
    """The rate of step (from 0): a linear rise to peak, then half a cosine that would reach 0 at n_steps."""
    n_warmup = int(warmup * n_steps)
    if step < n_warmup:
        return peak * (step + 1) / n_warmup
    return peak * (1 + math.cos(math.pi * (step - n_warmup) / (n_steps - n_warmup))) / 2


def build_optimizer(
    model: nn.Module, config: FineTuneConfig, make: MakeOptimizer | None = None
) -> torch.optim.Optimizer:
    """The optimizer of the parameters that require a gradient: what make returns for them, else the config's.

    Raises:
        ConfigError: none does.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise ConfigError("No parameter of the model requires a gradient, so nothing can be trained. Unfreeze some.")
    if make is not None:
        return make(parameters)
    # Decay keeps matrices small; on a bias or a batch norm's scale it only pulls the function towards zero.
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=(config.momentum, 0.999))
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=True)
