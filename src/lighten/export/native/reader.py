"""From a graph to a program.

What only moves numbers is run on their ids, what reads only constants is computed now, and every other operator has a
handler, in one of the files that to_native lists.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves, tree_map

from lighten.errors import CaptureError
from lighten.export.native.builder import Builder
from lighten.export.native.ids import FIRST, Ids, both_samples, one_sample
from lighten.graph.arguments import arguments
from lighten.graph.rules import MOVES_ONLY
from lighten.runtime.native.packed import FLOAT_BITS
from lighten.runtime.native.program import Program
from lighten.runtime.native.program import Tensor as Sizes

aten = torch.ops.aten
VIEWS = (aten.view.default, aten._unsafe_view.default)
MOVES = MOVES_ONLY - {aten.gather.default, aten.pad.default, aten.constant_pad_nd.default} | {
    aten.sym_size.int,
    aten.clone.default,
    aten.alias.default,
    aten.contiguous.default,
    aten.detach.default,
}
LIKE = {  # read only the shape of what they are given
    aten.zeros_like.default,
    aten.ones_like.default,
    aten.full_like.default,
    aten.new_zeros.default,
    aten.new_ones.default,
    aten.new_full.default,
}
INPUTS = (torch.float32, torch.int64, torch.int32, torch.bool)
Handler = Callable[["Reader", fx.Node, dict[str, Any]], Any]


class RefusalError(CaptureError):
    """node: of the graph that is read, which the engine cannot compute, or not as the model uses it."""

    def __init__(self, node: fx.Node, reason: str) -> None:
        called = f"'{node.target}' ('{node.name}')"
        super().__init__(f"The native engine cannot compute {called} as the model uses it: {reason}.")
        self.node, self.reason = node, reason


class Reader:
    """values: of the nodes that are still to be read: Ids, tensors that are constant, numbers, or tuples of those."""

    def __init__(self, module: fx.GraphModule, handlers: dict[Any, Handler], bits: int = FLOAT_BITS) -> None:
        self.module, self.handlers = module, handlers
        self.build = Builder(bits)
        self.values: dict[fx.Node, Any] = {}
        self.fused: set[fx.Node] = set()

    def read(self) -> Program:
        """The program.

        Raises:
            RefusalError: an operator that the engine does not have, by name.
        """
        *nodes, last = self.module.graph.nodes
        last_reader = {read: node for node in nodes for read in node.all_input_nodes}
        for node in nodes:
            try:
                self._node(node)
            except (ValueError, RuntimeError, IndexError) as error:  # ids are no indices
                raise RefusalError(node, str(error).splitlines()[0]) from error
            for read in node.all_input_nodes:
                if last_reader[read] is node and last not in read.users:
                    self.values.pop(read, None)
        returned: Any = last.args[0]
        return self.build.program(tuple(self._output(node) for node in returned))

    def _node(self, node: fx.Node) -> None:
        if node in self.values or node in self.fused:
            return
        if node.op == "placeholder":
            self.values[node] = self._input(node)
        elif node.op == "get_attr":
            self.values[node] = self.constant(node)
        elif node.op == "call_function" and node.users:
            value = self._call(node)
            if value is not None:  # else of a later node, of which this one became part
                self.values[node] = value

    def _call(self, node: fx.Node) -> Any:
        target: Any = node.target
        args, kwargs = fx.map_arg((node.args, node.kwargs), self.value)
        leaves = tree_leaves((args, kwargs))
        if target in MOVES or not any(isinstance(leaf, Ids) for leaf in leaves):
            if any(isinstance(leaf, Ids) for leaf in leaves):
                args, kwargs = tree_map(lambda leaf: self.ids(leaf).at if _is_number(leaf) else leaf, (args, kwargs))
                moved = _run(target, args, kwargs)
                return tree_map(lambda leaf: Ids(leaf) if isinstance(leaf, Tensor) else leaf, moved)
            return _run(target, args, kwargs)
        if target in LIKE:
            args, kwargs = tree_map(lambda leaf: leaf.at if isinstance(leaf, Ids) else leaf, (args, kwargs))
            return target(*args, **kwargs).to(node.meta["val"].dtype)
        must(target in self.handlers, "the engine does not have it")
        result = tree_leaves(node.meta["val"])[0]
        must(result.dtype in (torch.float32, torch.bool), "its result is neither float32 nor a mask")
        given = arguments(node)
        return self.handlers[target](self, node, {name: fx.map_arg(arg, self.value) for name, arg in given.items()})

    def value(self, node: fx.Node) -> Any:
        """What has been read of the node; None if it became part of another."""
        return self.values.get(node)

    def constant(self, node: Any) -> Tensor:
        """The tensor that a node of the graph stands for."""
        value: Any = self.module
        for part in str(node.target).split("."):
            value = getattr(value, part)
        constant: Tensor = value.detach()
        return constant

    def ids(self, value: Any) -> Ids:
        """The ids of a value; of a constant new ones."""
        if isinstance(value, Ids):
            return value
        must(isinstance(value, (Tensor, int, float)), f"{type(value).__name__} instead of a tensor")
        return self.build.ids_of(torch.as_tensor(value))

    def _input(self, node: fx.Node) -> Ids:
        value = node.meta["val"]
        must(isinstance(value, Tensor) and value.ndim > 1, "an input is a tensor with a batch")
        must(value.dtype in INPUTS, f"{value.dtype} instead of float32, int64, int32 or bool")
        batch, *shape = value.shape
        must(not isinstance(batch, int) and all(isinstance(size, int) for size in shape), "only the batch may be free")
        rows, height, width = shape if len(shape) == 3 else (shape[0], 1, math.prod(shape[1:]))
        start = self.build.starts[self.build.add_input(Sizes(rows, height, width))]
        return both_samples(start + torch.arange(math.prod(shape)).reshape(1, *shape), FIRST)

    def _output(self, node: fx.Node) -> int:
        try:
            value = self.ids(self.values.get(node))
            sample = one_sample(value, FIRST)[0]
            whole = self.build.whole(sample)
            return self.build.lay(sample.reshape((*sample.shape, 1)[0], -1)) if whole is None else whole
        except ValueError as error:
            raise RefusalError(node, str(error)) from error


def _run(target: Any, args: Any, kwargs: Any) -> Any:
    if target in VIEWS:  # ids have other strides than the values they stand for
        return torch.reshape(*args)
    return target(*args, **kwargs)


def _is_number(leaf: Any) -> bool:
    """Whether leaf has ids, rather than being an index."""
    return isinstance(leaf, Ids) or (isinstance(leaf, Tensor) and leaf.is_floating_point())


def must(holds: bool, what: str) -> None:
    """Raises ValueError(what) unless it holds."""
    if not holds:
        raise ValueError(what)
