"""Rewrite: take units out of the graph, parameters and constants alike.

Parameters lose the indices that their slots name. Sizes that the author wrote into the forward pass (`view(-1, 2304)`,
`split([32, 32])`, `groups=64`) are then recomputed from what is left of each tensor. Nothing is guessed: at the end the
new graph runs once, and every tensor must have the size that the labels predict.
"""

from typing import Any

import torch
from torch import Tensor

from lighten.errors import CaptureError
from lighten.graph.capture import CapturedModule, get_tensor, layer_of, set_tensor_
from lighten.graph.constants import kept_shape, rewrite_constants_
from lighten.graph.ids import tensors_in
from lighten.graph.labels import Labels
from lighten.graph.shapes import node_sizes

# Of the largest output. Sums in another order differ by far less, a wrong channel by far more.
TOLERANCE = {torch.float64: 1e-7, torch.float32: 1e-2}
WEIGHT_NORM = torch.ops.aten._weight_norm.default


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
    expected = {
        name: [kept_shape(ids, units) for ids in tensors_in(value)]
        for name, value in labels.values.items()
        if value is not None  # the weight of a layer, transposed
    }
    for node in list(captured.graph.nodes):
        if node.name in labels.values and node.op == "call_function":
            rewrite_constants_(node, labels, units, expected.get(node.name, []))
    captured.recompile()
    _check(captured, expected, example_inputs)


def zero_units_(captured: CapturedModule, labels: Labels, units: Tensor) -> None:
    """Set everything that the units own to zero, in place: the oracle that removal is held against."""
    for name, value in zeroed_units(captured, labels, units).items():
        get_tensor(captured, name).detach().copy_(value)


def zeroed_units(captured: CapturedModule, labels: Labels, units: Tensor) -> dict[str, Tensor]:
    """The tensors that own the units, by name, with everything that they own at zero; captured is left as it is.

    Running variances become 1, so that a zeroed channel leaves batch norm as 0 and not as NaN; the direction v of a
    weight norm v · g / |v| keeps its length for the same reason, since g is 0.
    """
    directions = {(str(n.args[0].target), (*n.args, 0)[2]) for n in captured.graph.nodes if n.target == WEIGHT_NORM}
    zeroed: dict[str, Tensor] = {}
    for slot in labels.slots:
        hit = torch.isin(slot.ids, units)
        if (slot.parameter, slot.axis) in directions or not hit.any():
            continue
        tensor = zeroed.get(slot.parameter, get_tensor(captured, slot.parameter).detach())
        value = 1.0 if slot.parameter.endswith("running_var") else 0.0
        zeroed[slot.parameter] = tensor.index_fill(slot.axis, hit.nonzero()[:, 0], value)
    return zeroed


def check_equals_zeroing(
    before: CapturedModule, labels: Labels, units: Tensor, pruned: CapturedModule, inputs: tuple[Any, ...]
) -> None:
    """The oracle, on the model at hand: pruned must compute on inputs what before computes with units zeroed.

    before is zeroed in place. A model that is not deterministic, or that divides by a zeroed channel, cannot be told.

    Raises:
        CaptureError: it does not (a bug worth reporting).
    """
    zero_units_(before, labels, units)
    want, again, got = (_float_outputs(module, inputs) for module in (before, before, pruned))
    for one, other, result in zip(want, again, got, strict=True):
        told = one.isfinite() & (one == other)
        if not told.any():
            continue
        scale, error = float(one[told].abs().max()), float((one - result)[told].abs().max())
        if not error <= TOLERANCE.get(one.dtype, 0.1) * max(scale, 1e-6):
            raise CaptureError(
                f"The pruned model does not compute what the model with the same channels zeroed computes: outputs of "
                f"size {scale:.3g} differ by {error:.3g}. This is a bug in the rule of some operator; exclude parts of "
                "the model until it passes, and please report it."
            )


def _float_outputs(module: CapturedModule, inputs: tuple[Any, ...]) -> list[Tensor]:
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return [out for out in tensors_in(module(*inputs)) if out.is_floating_point() and out.numel()]


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
