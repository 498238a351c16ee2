"""Counting: parameters and multiply–accumulates, as they are and not as they were planned."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from lighten.graph.capture import CapturedModule, placeholder_values


def count_parameters(model: nn.Module) -> int:
    """Numbers that training would change."""
    return sum(p.numel() for p in model.parameters())


def count_macs(model: nn.Module, example_inputs: tuple[Any, ...]) -> int:
    """Multiply–accumulates of one sample in convolutions, linear layers, matrix products and attention.

    example_inputs: any batch; its first sample is used.
    """
    was_training = model.training
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(*one_sample(example_inputs))
    model.train(was_training)
    return int(counter.get_total_flops()) // 2


def node_macs(captured: CapturedModule, example_inputs: tuple[Any, ...]) -> dict[fx.Node, int]:
    """Multiply–accumulates in each node that has any, counted as by count_macs: of one sample, or of all of
    example_inputs where the model takes no other batch size."""
    inputs = one_sample(example_inputs) if captured.batch_is_dynamic else example_inputs
    return macs_of_nodes(captured, placeholder_values(captured, inputs))


def macs_of_nodes(module: fx.GraphModule, values: Sequence[Any]) -> dict[fx.Node, int]:
    """Multiply–accumulates in each node that has any; values: of the placeholders."""
    found: dict[fx.Node, int] = {}

    class Counting(fx.Interpreter):
        extra_traceback = False

        def run_node(self, n: fx.Node) -> Any:
            with FlopCounterMode(display=False) as counter:
                value = super().run_node(n)
            if macs := int(counter.get_total_flops()) // 2:
                found[n] = macs
            return value

    with torch.no_grad():
        Counting(module).run(*values, enable_io_processing=False)
    return found


def one_sample(example_inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """The first sample of each tensor that has an axis."""
    one: tuple[Any, ...] = tree_map_only(torch.Tensor, lambda x: x[:1] if x.ndim else x, example_inputs)
    return one
