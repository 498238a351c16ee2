"""Shapes: what every node of a captured graph computes, without the data, and which nodes no input reaches."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_map_only

from lighten.graph.capture import CapturedModule, placeholder_values, with_batch_of_two
from lighten.graph.ids import tensors_in

aten = torch.ops.aten

# They look at a tensor for its dtype and device only.
NEW_CONSTANTS = {
    *(aten.new_zeros.default, aten.new_ones.default, aten.new_full.default, aten.new_empty.default),
}
MAX_DATA = 1 << 22  # indices worth keeping; a larger integer tensor is not an index


@dataclass
class Shapes:
    """sizes: of every node, tensors on device "meta" and numbers as they are. free: nodes that no input reaches, so
    that they can take any size their readers want. data: what free integer nodes hold."""

    sizes: dict[fx.Node, Any] = field(default_factory=dict)
    free: set[fx.Node] = field(default_factory=set)
    data: dict[fx.Node, Tensor] = field(default_factory=dict)


def find_shapes(captured: CapturedModule, example_inputs: tuple[Any, ...]) -> Shapes:
    """Run captured once, on example_inputs, and look at every node."""
    shapes, fixed = Shapes(), set[fx.Node]()

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            shapes.sizes[n] = tree_map_only(Tensor, lambda t: t.detach().to("meta"), value)
            if n.op in ("get_attr", "call_function"):
                read = n.all_input_nodes if n.target not in NEW_CONSTANTS else n.all_input_nodes[1:]
                if all(r in shapes.free or not tensors_in(shapes.sizes[r]) for r in read) and tensors_in(value):
                    shapes.free.add(n)
                if all(r in fixed for r in n.all_input_nodes):
                    fixed.add(n)
                    if isinstance(value, Tensor) and not value.is_floating_point() and value.numel() <= MAX_DATA:
                        shapes.data[n] = value.detach().clone()
            return value

    inputs = with_batch_of_two(example_inputs) if captured.batch_is_dynamic else example_inputs
    with torch.no_grad():
        Recorder(captured).run(*placeholder_values(captured, inputs), enable_io_processing=False)
    return shapes


def node_sizes(captured: CapturedModule, example_inputs: tuple[Any, ...]) -> dict[fx.Node, Any]:
    """What every node computes on example_inputs: tensors without data (device "meta"), numbers as they are."""
    return find_shapes(captured, example_inputs).sizes
