"""Layer by layer: run a graph node by node over all calibration batches, and round each weight when its layer is due.

A layer then sees the inputs that the already rounded layers before it make, so that it can make up for their errors.
What it would see in the network as given runs beside, for the sake of Moments.drift. Every node runs once a batch, and
once more where the two differ. Held at a time: the tensors that later nodes still need, for all batches, of both.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, fx

from lighten.errors import TaskError
from lighten.graph.arguments import arguments
from lighten.graph.capture import CapturedModule, get_tensor, placeholder_values
from lighten.quantize.moments import MomentAccumulator, Moments, rows_of_input
from lighten.quantize.ranges import does_not_fit, must_hold_samples
from lighten.quantize.weights import StoredWeight
from lighten.task import as_args


def run_layer_by_layer(
    captured: CapturedModule,
    weights: Iterable[StoredWeight],
    batches: Iterable[Any],
    round_weight: Callable[[StoredWeight, Moments | None], Tensor],
) -> None:
    """Call round_weight for each of weights, in the order in which layers run; captured itself is not modified.

    round_weight: from a weight and the moments of its reader's input (None = it has no reader) to the weight that later
    layers see.

    Raises:
        TaskError: a batch does not fit the model, or the input of a layer is NaN or infinite (it is named).
    """
    by_reader: dict[fx.Node, list[StoredWeight]] = defaultdict(list)
    at_once: dict[fx.Node, StoredWeight] = {}
    for weight in weights:
        if weight.reader is None:
            at_once[weight.parameter] = weight
        else:
            by_reader[weight.reader].append(weight)
    runs = [_Pair(captured, index, batch) for index, batch in enumerate(batches)]
    freed = last_uses(captured.graph)
    with torch.no_grad():
        for node in captured.graph.nodes:
            for weight in by_reader.get(node, ()):
                value = get_tensor(captured, str(weight.parameter.target))
                rounded = round_weight(weight, _moments(weight, node, value, runs))
                for run in runs:
                    run.replace(weight.parameter, rounded)
            for run in runs:
                run.step(node)
            if node in at_once:
                rounded = round_weight(at_once[node], None)
                for run in runs:
                    run.replace(node, rounded)
            for used in freed.get(node, ()):
                for run in runs:
                    run.forget(used)


class Run(fx.Interpreter):
    """One batch on its way through the graph."""

    def __init__(self, captured: CapturedModule, index: int, batch: Any) -> None:
        super().__init__(captured)
        self.extra_traceback = False  # it would be appended to our messages
        self.index = index
        must_hold_samples(index, batch)
        try:
            self.args_iter = iter(placeholder_values(captured, as_args(batch)))
        except Exception as error:
            raise does_not_fit(index, error) from error

    def step(self, node: fx.Node) -> None:
        """Run node; its result is in env."""
        try:
            self.env[node] = self.run_node(node)
        except Exception as error:
            raise does_not_fit(self.index, error) from error


class _Pair:
    """One batch on its way through the graph, with rounded weights and with those given; as long as there is no
    difference, what the former makes stands for both."""

    def __init__(self, captured: CapturedModule, index: int, batch: Any) -> None:
        self.index = index
        self.rounded, self.given = (Run(captured, index, batch) for _ in range(2))
        self.differ: set[fx.Node] = set()  # nodes whose values may be two
        self.shares = not any(_writes(node) for node in captured.graph.nodes)  # else one would write into the other's

    def step(self, node: fx.Node) -> None:
        self.rounded.step(node)
        if not self.shares or self.differ.intersection(node.all_input_nodes):
            self.given.step(node)
            self.differ.add(node)
        else:
            self.given.env[node] = self.rounded.env[node]

    def replace(self, parameter: fx.Node, value: Tensor) -> None:
        self.rounded.env[parameter] = value
        self.differ.add(parameter)

    def forget(self, node: fx.Node) -> None:
        self.rounded.env.pop(node, None)
        self.given.env.pop(node, None)


def _writes(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _moments(weight: StoredWeight, reader: fx.Node, value: Tensor, runs: list[_Pair]) -> Moments:
    accumulator = MomentAccumulator()
    source = arguments(reader)["input"]
    for run in runs:
        x, given = run.rounded.env[source], run.given.env[source]
        if not (x.isfinite().all() and given.isfinite().all()):
            raise TaskError(
                f"The input of layer '{weight.layer}' is NaN or infinite during calibration. Check the calibration "
                "data and the weights up to there."
            )
        try:
            parts = rows_of_input(reader, x, value.shape)
            if source in run.differ:
                for rows, others in zip(parts, rows_of_input(reader, given, value.shape), strict=True):
                    accumulator.add(rows, others)
            else:
                for rows in parts:
                    accumulator.add(rows)
        except RuntimeError as error:
            raise does_not_fit(run.index, error) from error
    return accumulator.moments()


def last_uses(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    """After which node which others are read no more."""
    last: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        last[node] = node
        for used in node.all_input_nodes:
            last[used] = node
    freed: dict[fx.Node, list[fx.Node]] = defaultdict(list)
    for used, node in last.items():
        freed[node].append(used)
    return freed
