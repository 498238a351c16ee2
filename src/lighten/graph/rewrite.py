"""Rewrite: take units out of the graph, parameters and constants alike.

Parameters lose the indices that their slots name. Sizes that the author wrote into the forward pass (`view(-1, 2304)`,
`split([32, 32])`, `groups=64`) are then recomputed from what is left of each tensor. Nothing is guessed: at the end the
new graph runs once, and every tensor must have the size that the labels predict.
"""

from typing import Any

import torch
from torch import Tensor, fx

from lighten.errors import CaptureError
from lighten.graph.arguments import arguments, set_argument_
from lighten.graph.capture import CapturedModule, get_tensor, layer_of, set_tensor_
from lighten.graph.labels import Labels, node_sizes, tensors_in, varies

aten = torch.ops.aten

# Operators that name the sizes of their result, and the argument that does.
RESULT_SIZE = {
    aten.view.default: "size",
    aten.reshape.default: "shape",
    aten._unsafe_view.default: "size",
    aten.expand.default: "size",
}
SPLITS = (aten.split.Tensor, aten.split.sizes, aten.split_with_sizes.default, aten.chunk.default)
CONVOLUTIONS = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)


def remove_units_(captured: CapturedModule, labels: Labels, units: Tensor, example_inputs: tuple[Any, ...]) -> None:
    """Take the units with these ids out of captured, in place.

    Raises:
        CaptureError: the rewritten graph does not compute what the labels predict (a bug worth reporting).
    """
    keep = {id(slot): ~torch.isin(slot.ids, units) for slot in labels.slots}
    for slot in labels.slots:
        indices = keep[id(slot)].nonzero()[:, 0]
        if len(indices) < len(slot.ids):
            set_tensor_(captured, slot.parameter, get_tensor(captured, slot.parameter).index_select(slot.axis, indices))
    expected = {name: [_kept_shape(ids, units) for ids in tensors_in(value)] for name, value in labels.values.items()}
    for node in captured.graph.nodes:
        if node.name in labels.values:
            _rewrite_constants(node, labels, units, expected[node.name])
    captured.recompile()
    _check(captured, expected, example_inputs)


def zero_units_(captured: CapturedModule, labels: Labels, units: Tensor) -> None:
    """Set everything that the units own to zero, in place: the oracle that removal is held against.

    Running variances become 1, so that a zeroed channel leaves batch norm as 0 and not as NaN.
    """
    for slot in labels.slots:
        tensor = get_tensor(captured, slot.parameter).detach()
        value = 1.0 if slot.parameter.endswith("running_var") else 0.0
        tensor.index_fill_(slot.axis, torch.isin(slot.ids, units).nonzero()[:, 0], value)


def kept_indices(ids: Tensor, axis: int, units: Tensor) -> Tensor:
    """[size] True for the indices along axis that are left when units go."""
    if not varies(ids, axis):  # whatever is removed, it is not along this axis
        return torch.ones(ids.shape[axis], dtype=torch.bool)
    line = ids.movedim(axis, 0).flatten(1)[:, 0]  # ids are regular: any line along the axis shows them all
    return ~torch.isin(line, units)


def _kept_shape(ids: Tensor, units: Tensor) -> tuple[int, ...]:
    return tuple(int(kept_indices(ids, axis, units).sum()) for axis in range(ids.ndim))


def _rewrite_constants(node: fx.Node, labels: Labels, units: Tensor, expected: list[tuple[int, ...]]) -> None:
    before = [tuple(t.shape) for t in tensors_in(labels.values[node.name])]
    given = arguments(node)
    if node.target in RESULT_SIZE:
        name = RESULT_SIZE[node.target]
        set_argument_(node, name, _new_sizes(list(given[name]), before[0], expected[0]))
    elif node.target == aten.unflatten.int:
        axis = given["dim"] % (len(before[0]) - len(given["sizes"]) + 1)
        part = slice(axis, axis + len(given["sizes"]))
        set_argument_(node, "sizes", _new_sizes(list(given["sizes"]), before[0][part], expected[0][part]))
    elif node.target in SPLITS and before != expected:
        node.target = aten.split_with_sizes.default
        node.args, node.kwargs = (given["self"], [shape[given["dim"]] for shape in expected], given["dim"]), {}
    elif node.target == aten.slice.Tensor and given["self"].name in labels.values:
        kept = kept_indices(labels.values[given["self"].name], given["dim"], units)
        if not kept.all():
            start, end, _ = slice(given["start"], given["end"]).indices(len(kept))
            node.args = (given["self"], given["dim"], int(kept[:start].sum()), int(kept[:end].sum()), given["step"])
    elif node.target in CONVOLUTIONS and given["groups"] > 1:
        captured = node.graph.owning_module
        assert captured is not None
        weight = get_tensor(captured, given["weight"].target)
        ids = labels.values[given["input"].name]
        n_in = _kept_shape(ids, units)[1 - weight.ndim]
        set_argument_(node, "groups", n_in // weight.shape[1])  # unchanged, but for a depthwise convolution


def _new_sizes(sizes: list[Any], before: tuple[int, ...], after: tuple[int, ...]) -> list[Any]:
    """sizes as the author wrote them, with the literal ones of axes that shrank replaced."""
    offset = len(after) - len(sizes)  # expand may name fewer axes than -- never more than -- the result has
    return [
        after[offset + i] if isinstance(size, int) and size != -1 and before[offset + i] != after[offset + i] else size
        for i, size in enumerate(sizes)
    ]


def _check(captured: CapturedModule, expected: dict[str, list[tuple[int, ...]]], inputs: tuple[Any, ...]) -> None:
    try:
        sizes = node_sizes(captured, inputs)
    except (RuntimeError, ValueError, IndexError) as error:
        raise CaptureError(
            f"The pruned graph does not run: {str(error).splitlines()[0]} This is a bug in the labels of one of the "
            "operators; exclude the layer it names, and please report the model."
        ) from error
    for node, size in sizes.items():
        got, shapes = [tuple(t.shape) for t in tensors_in(size)], expected.get(node.name)
        if shapes is not None and got != shapes:
            raise CaptureError(
                f"After pruning, {node.target} in layer '{layer_of(node)}' gives {got}; its labels predict "
                f"{shapes}. This is a bug in its rule; exclude the layer, and please report the model."
            )
