"""Counting: parameters and multiply–accumulates, as they are and not as they were planned."""

from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode


def count_parameters(model: nn.Module) -> int:
    """Numbers that training would change."""
    return sum(p.numel() for p in model.parameters())


def count_macs(model: nn.Module, example_inputs: tuple[Any, ...]) -> int:
    """Multiply–accumulates of one sample in convolutions, linear layers, matrix products and attention.

    example_inputs: any batch; its first sample is used.
    """
    one = tree_map_only(torch.Tensor, lambda x: x[:1] if x.ndim else x, example_inputs)
    was_training = model.training
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(*one)
    model.train(was_training)
    return int(counter.get_total_flops()) // 2
