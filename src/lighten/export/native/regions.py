"""Regions: the nodes of a graph that run together where the engine and ONNX Runtime take turns.

Turns are counted: the engine has the even ones, ONNX Runtime the odd ones. A node has the first turn of its runtime in
which all that it reads is there, so turns are as few as can be, and a region, all nodes of a turn, reads only what
earlier ones make: there are no cycles between regions. What no input reaches (weights, constants, sizes) has no turn:
it becomes part of every region that reads it.
"""

import math
import operator
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

SIZE = torch.ops.aten.sym_size.int


@dataclass(frozen=True)
class Region:
    """nodes: of one turn, in order. inputs, outputs: the nodes whose tensors come in and go out."""

    turn: int
    nodes: tuple[fx.Node, ...]
    inputs: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]

    @property
    def is_native(self) -> bool:
        """Whether it is the engine's."""
        return self.turn % 2 == 0


class Flow:
    """The nodes of module that compute its outputs from its inputs, whose first axis is the batch."""

    def __init__(self, module: fx.GraphModule) -> None:
        self.module = module
        *nodes, last = module.graph.nodes
        returned: Any = last.args[0]
        self.returned: tuple[fx.Node, ...] = tuple(returned)
        self.inputs = tuple(node for node in nodes if node.op == "placeholder")
        # Inputs that never meet have a name each for the number of samples, which is the same.
        self.batch = {str(node.meta["val"].shape[0]) for node in self.inputs if node.meta["val"].ndim}
        needed = set(self.returned)
        for node in reversed(nodes):
            needed |= set(node.all_input_nodes) if node in needed else set()
        self._bound: set[fx.Node] = set(self.inputs)
        for node in nodes:
            if node in needed and not self._is_batch(node) and self._bound.intersection(node.all_input_nodes):
                self._bound.add(node)
        self.nodes = tuple(node for node in nodes if node in self._bound and node.op != "placeholder")

    def regions(self, refused: Collection[fx.Node]) -> list[Region]:
        """In the order of their turns. refused: what the engine does not compute."""
        turns = dict.fromkeys(self.inputs, 0)
        for node in self.nodes:
            is_odd = root(node) in refused
            earliest = max((turns[read] for read in node.all_input_nodes if read in turns), default=0)
            turns[node] = earliest + (earliest % 2 != is_odd)
        return [self._region(turn, turns) for turn in sorted({turns[node] for node in self.nodes})]

    def can_pass(self, node: fx.Node) -> bool:
        """Whether what node makes can pass from region to region: a tensor, the batch alone being its first axis."""
        value = node.meta["val"]
        if not isinstance(value, Tensor) or not value.ndim:
            return False
        batch, *shape = value.shape
        return str(batch) in self.batch and all(isinstance(size, int) for size in shape)

    def module_of(self, region: Region) -> tuple[fx.GraphModule, dict[fx.Node, fx.Node]]:
        """What region computes, as a module of its own; and which node each node of its graph is a copy of."""
        graph, places = fx.Graph(), dict[fx.Node, fx.Node]()
        for node in region.inputs:
            places[node] = graph.placeholder(node.name)
            places[node].meta = {**node.meta}

        def place(node: fx.Node) -> fx.Node:
            if node not in places and self._is_batch(node):
                places[node] = graph.call_function(SIZE, (places[region.inputs[0]], 0))
                places[node].meta = {**node.meta}
            elif node not in places:
                for read in node.all_input_nodes:
                    place(read)
                places[node] = graph.node_copy(node, places.__getitem__)
            return places[node]

        for node in region.nodes:
            place(node)
        graph.output(tuple(places[node] for node in region.outputs))
        return fx.GraphModule(self.module, graph), {copy: node for node, copy in places.items()}

    def weights(self, node: fx.Node) -> list[fx.Node]:
        """The matrices that node reads and no input reaches."""
        constants = [read for read in node.all_input_nodes if read not in self._bound]
        return [each for each in constants if isinstance(each.meta.get("val"), Tensor) and each.meta["val"].ndim > 1]

    def read_later(self, region: Region) -> list[fx.Node]:
        """The nodes of region that others read."""
        outside = self._bound.difference(region.nodes)
        return [node for node in region.nodes if not outside.isdisjoint(node.users)]

    def inner(self, node: fx.Node, region: Region) -> list[fx.Node]:
        """node, where region has a turn for it; else the first nodes of region that read it, or what is made of it."""
        found, left = dict[fx.Node, None](), [node]
        while left:
            each = left.pop()
            if each in region.nodes:
                found[each] = None
            else:
                left += [user for user in each.users if user in region.nodes or user not in self._bound]
        return list(found)

    def _region(self, turn: int, turns: dict[fx.Node, int]) -> Region:
        nodes = tuple(node for node in self.nodes if turns[node] == turn)
        reads = dict.fromkeys(read for node in nodes for read in node.all_input_nodes if turns.get(read, turn) != turn)
        # Inputs are there from the beginning: they have the first turn too, and are read in it all the same.
        given = [read for read in self.inputs if turn == 0 and any(user in nodes for user in read.users)]
        region = Region(turn, nodes, (*given, *reads), ())
        later = self.read_later(region)
        return replace(region, outputs=tuple(node for node in nodes if node in later or node in self.returned))

    def _is_batch(self, node: fx.Node) -> bool:
        """Whether node is the number of samples, which is at hand wherever a tensor is."""
        return node.target is SIZE and str(node.meta["val"]) in self.batch


def root(node: fx.Node) -> fx.Node:
    """What node is an item of, if it is one: both are computed together."""
    while node.target is operator.getitem:
        node = node.all_input_nodes[0]
    return node


def n_numbers(nodes: Sequence[fx.Node]) -> int:
    """Of one sample, in all that nodes make, the batch being the first axis."""
    return sum(math.prod(node.meta["val"].shape[1:]) for node in nodes)
