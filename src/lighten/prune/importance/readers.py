"""Readers: what reads the channels of a group, as linear maps with the second moments of what they read.

A linear layer or a convolution is one, with its weight. So is a product that sums over the channels, of two activations
as q·k, or with a weight that lighten.prune.refit does not fit: every channel counts once there, and nothing makes up
for it. Over all pairs of a query and a key the moments of what is summed, qᵢ kᵢ, are the products of both sides'.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from lighten.errors import ConfigError, TaskError
from lighten.graph.capture import CapturedModule, get_tensor, placeholder_values
from lighten.graph.groups import Group, rows_of_units
from lighten.graph.ids import by_index, varying_axes
from lighten.graph.labels import Labels, Slot
from lighten.prune.calibration import input_statistics, misfit
from lighten.prune.layers import WeightLayer, find_layers
from lighten.task import as_args

aten = torch.ops.aten
ATTENTION = aten.scaled_dot_product_attention.default
PRODUCTS = {  # the arguments that are multiplied
    ATTENTION: (0, 1),
    aten.matmul.default: (0, 1),
    aten.bmm.default: (0, 1),
    aten.addmm.default: (1, 2),
}


@dataclass(frozen=True, kw_only=True)
class Reader:
    """weight [out, columns] float64, so scaled that the mean square of what comes out adds up to 1. moments [columns,
    columns] float64: X Xᵀ / n of what is read; diagonal where no weight can make up for another. columns [n_units, n]:
    those of each unit, -1 where it has fewer."""

    weight: Tensor
    moments: Tensor
    columns: Tensor


def find_readers(
    captured: CapturedModule, labels: Labels, groups: list[Group], batches: Iterable[Any]
) -> list[list[Reader]]:
    """The readers of each group: layers, one for each group of a convolution, or where there are none, products.

    Raises:
        ConfigError: a group has neither. TaskError: there is no batch, or one does not fit the model.
    """
    layers, slots, products = _what_reads(captured, labels, groups)
    for name in _unread(groups, slots, products):
        raise ConfigError(
            f"importance='obs' cannot rank the channels of '{name}': no linear layer, convolution or product "
            f"reads them. Exclude it (exclude=['{name}']), or use another criterion."
        )
    wanted = [layers[name] for name in dict.fromkeys(slot.parameter for read in slots for slot in read)]
    batches = list(batches) if wanted and any(products) else batches
    moments = input_statistics(captured, wanted, batches, full=True) if wanted else {}
    met = _product_moments(captured, {node for of_group in products for node, _ in of_group}, batches)
    return [
        [r for s in read for r in _of_layer(captured, layers[s.parameter], s, group, moments)]
        + [_of_product(met[node], line, group) for node, line in multiplied]
        for group, read, multiplied in zip(groups, slots, products, strict=True)
    ]


def without_readers(captured: CapturedModule, labels: Labels, groups: list[Group]) -> list[str]:
    """The names of the groups that no linear layer, convolution or product reads."""
    _, slots, products = _what_reads(captured, labels, groups)
    return _unread(groups, slots, products)


def _unread(groups: list[Group], slots: list[list[Slot]], products: list[list[tuple[fx.Node, Tensor]]]) -> list[str]:
    found = zip(groups, slots, products, strict=True)
    return [group.name for group, read, multiplied in found if not read and not multiplied]


def _what_reads(
    captured: CapturedModule, labels: Labels, groups: list[Group]
) -> tuple[dict[str, WeightLayer], list[list[Slot]], list[list[tuple[fx.Node, Tensor]]]]:
    """Layers by parameter; of each group where they read it, and if none does, what products do."""
    layers = {layer.parameter: layer for layer in find_layers(captured)[0]}
    slots = [[s for s in g.slots if s.role == "input" and s.axis == 1 and s.parameter in layers] for g in groups]
    products = [[] if read else _products(captured, labels, g) for g, read in zip(groups, slots, strict=True)]
    return layers, slots, products


def _of_layer(
    captured: CapturedModule, layer: WeightLayer, slot: Slot, group: Group, moments: dict[str, Tensor]
) -> list[Reader]:
    weight = get_tensor(captured, layer.parameter).detach()
    columns = _columns(weight[0, 0].numel(), slot.ids, group)
    parts, of_layer = weight.double().flatten(1).chunk(layer.groups), moments[layer.name]
    scale = _scale(sum(float(((w @ m) * w).sum()) for w, m in zip(parts, of_layer, strict=True)))
    return [Reader(weight=w * scale, moments=m, columns=columns) for w, m in zip(parts, of_layer, strict=True)]


def _of_product(moments: Tensor, line: Tensor, group: Group) -> Reader:
    weight = torch.full((1, len(moments)), _scale(float(moments.sum())), dtype=torch.float64)
    return Reader(weight=weight, moments=moments.diagonal().diag(), columns=_columns(1, line, group))


def _scale(energy: float) -> float:
    return float(energy**-0.5) if energy > 0 else 0.0  # what gives nothing loses nothing


def _columns(kernel: int, ids: Tensor, group: Group) -> Tensor:
    """[n_units, n]: the columns, `kernel` for each of ids, that each unit owns; -1 where it owns fewer."""
    numbers = torch.arange(1, len(ids) * kernel + 1).view(-1, kernel)
    return rows_of_units(numbers, Slot("", 0, "input", ids), group.units) - 1  # 0 was the padding


def _factors(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """What node multiplies, if it is a product."""
    places = PRODUCTS.get(node.target) if isinstance(node.target, OpOverload) else None
    if places is None:
        return None
    left, right = (node.args[place] for place in places)
    assert isinstance(left, fx.Node)
    assert isinstance(right, fx.Node)
    return left, right


def _products(captured: CapturedModule, labels: Labels, group: Group) -> list[tuple[fx.Node, Tensor]]:
    """The products that sum over the group's channels, with the ids along the axis that is summed."""
    found = []
    for node in captured.graph.nodes:
        if factors := _factors(node):
            ids = labels.values.get(factors[0].name)
            if isinstance(ids, Tensor) and varying_axes(ids) == [ids.ndim - 1]:
                line = by_index(ids, ids.ndim - 1)[:, 0]
                if bool(torch.isin(group.units, line).all()):
                    found.append((node, line))
    return found


def _product_moments(captured: CapturedModule, nodes: set[fx.Node], batches: Iterable[Any]) -> dict[fx.Node, Tensor]:
    """[channels, channels] float64 of each product: the mean of Σ qᵢ kᵢ qⱼ kⱼ over samples and heads."""
    sums: dict[fx.Node, Tensor] = {}
    counts: dict[fx.Node, int] = {}

    class Watcher(fx.Interpreter):
        extra_traceback = False

        def run_node(self, n: fx.Node) -> Any:
            if n in nodes and (factors := _factors(n)):
                left, right = (self.env[factor].detach().double() for factor in factors)
                first, second = left.mT @ left, right.mT @ right if n.target is ATTENTION else right @ right.mT
                if n.target is ATTENTION and second.shape[-3] != first.shape[-3]:  # grouped queries
                    second = second.repeat_interleave(first.shape[-3] // second.shape[-3], -3)
                both = (first * second).reshape(-1, *first.shape[-2:])
                sums[n] = sums.get(n, 0) + both.sum(0)
                counts[n] = counts.get(n, 0) + len(both)
            return super().run_node(n)

    with torch.no_grad():
        for index, batch in enumerate(batches if nodes else ()):
            try:
                Watcher(captured).run(*placeholder_values(captured, as_args(batch)), enable_io_processing=False)
            except Exception as error:
                raise TaskError(misfit(index, error)) from error
    if nodes and not sums:
        raise TaskError("The calibration data is empty. Pass calibration=[batch, …]; 100 to 500 samples are enough.")
    return {node: total / counts[node] for node, total in sums.items()}
