"""What a criterion for channels can look at beyond their weights, gathered only where its config asks for it.

A criterion of `unit_importance` is a function of (UnitData, config); its config says what it needs in `needs`. The
criteria of `lighten.registry.importance` see the rows alone; `score_units` serves both.
"""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from lighten.errors import ConfigError, TaskError
from lighten.graph.arguments import arguments
from lighten.graph.capture import CapturedModule, get_tensor
from lighten.graph.fold import fold_batch_norm_
from lighten.graph.groups import Group, rows_of_units
from lighten.graph.labels import Labels, Slot
from lighten.prune.calibration import misfit
from lighten.prune.gradients import Loss, sample_gradients
from lighten.prune.importance.readers import Reader, find_readers
from lighten.quantize.ranges import placeholder_values
from lighten.registry import Registry, importance
from lighten.task import as_args

aten = torch.ops.aten


@dataclass(frozen=True, kw_only=True)
class UnitData:
    """One group of n_units. Only what the criterion's config says in `needs` is there, the rest is None.

    rows [n_units, elements] float32: the weights that make each unit, batch norm folded in.
    products [n_samples, n_units]: Σ w · g over what makes the unit (weights and bias): to first order, how the loss
    (of a sample) falls when the unit goes. squares [n_units]: the samples' mean of Σ (w · g)². (needs = "gradients")
    scale [n_units]: |γ| of batch norm, the mean where there are several. (needs = "scale")
    activity [n_units]: mean |x| of what the next layers read of the unit. (needs = "activations")
    readers: what reads the group. (needs = "readers")
    """

    rows: Tensor
    products: Tensor | None = None
    squares: Tensor | None = None
    scale: Tensor | None = None
    activity: Tensor | None = None
    readers: list[Reader] | None = None


unit_importance: Registry[Callable[[UnitData, Any], Tensor]] = Registry("importance criterion for channels")


def score_units(
    captured: CapturedModule,
    labels: Labels,
    groups: list[Group],
    rows: list[Tensor],
    criterion: str,
    batches: Iterable[Any] | None = None,
    loss: Loss | None = None,
) -> list[Tensor]:
    """[n_units] of each group, higher = keep, by the criterion of that name.

    rows: of each group. batches: of inputs, or of (inputs, target) where there is a loss.

    Raises:
        ConfigError: there is no such criterion, or it cannot rank a group. TaskError: it looks at data, and there is
        none or it does not fit.
    """
    if criterion not in {entry.name for entry in unit_importance}:
        plain = importance[criterion]
        return [plain.function(r, plain.config()) for r in rows]
    entry = unit_importance[criterion]
    config = entry.config()
    units = [UnitData(rows=r) for r in rows]
    if config.needs == "scale":
        found = [batch_norm_scale(captured, group) for group in groups]
        units = [replace(u, scale=s) for u, s in zip(units, found, strict=True)]
    elif batches is None:
        raise TaskError(
            f"importance='{criterion}' looks at data and got none. Pass calibration=[batch, …]; 100 to 500 typical "
            "samples are enough."
        )
    elif config.needs == "activations":
        inputs = batches if loss is None else (batch[0] for batch in batches)
        read = mean_activity(captured, labels, groups, inputs)
        units = [replace(u, activity=a) for u, a in zip(units, read, strict=True)]
    elif config.needs == "readers":
        inputs = batches if loss is None else (batch[0] for batch in batches)
        units = [
            replace(u, readers=r) for u, r in zip(units, find_readers(captured, labels, groups, inputs), strict=True)
        ]
    elif config.needs == "gradients":
        moved = gradient_products(captured, groups, batches, loss)
        units = [replace(u, products=p, squares=s) for u, (p, s) in zip(units, moved, strict=True)]
    return [entry.function(u, config) for u in units]


def comparable() -> list[str]:
    """The criteria whose scores mean the same in every group, so that they may be weighed against what units cost."""
    return [entry.name for entry in unit_importance if getattr(entry.config, "comparable", False)]


def relative(scores: Tensor) -> Tensor:
    """Scores of one group over their mean: what makes those of a criterion comparable between groups that are not."""
    return scores / scores.mean().clamp(min=torch.finfo(scores.dtype).tiny)


def batch_norm_scale(captured: CapturedModule, group: Group) -> Tensor:
    """[n_units] mean |γ| over the batch norms that carry the group.

    Raises:
        ConfigError: there is none.
    """
    gammas = {
        str(arguments(node)["weight"].target)
        for node in captured.graph.nodes
        if node.target == aten.batch_norm.default and arguments(node)["weight"] is not None
    }
    slots = [slot for slot in group.slots if slot.parameter in gammas]
    if not slots:
        raise ConfigError(
            f"importance='bn-scale' cannot rank the channels of '{group.name}': no batch norm with a scale follows. "
            f"Exclude it (exclude=['{group.name}']), or use another criterion."
        )
    found = [_per_unit(get_tensor(captured, slot.parameter).detach().float().abs(), slot, group) for slot in slots]
    return torch.stack(found).mean(0)


def gradient_products(
    captured: CapturedModule, groups: list[Group], batches: Iterable[Any], loss: Loss | None
) -> list[tuple[Tensor, Tensor]]:
    """(products, squares) of each group, see UnitData; batch norm is folded, so that a unit is a filter and a bias."""
    folded = copy.deepcopy(captured)
    fold_batch_norm_(folded)
    slots = [[s for slot in group.slots if slot.role == "output" for s in _with_bias(folded, slot)] for group in groups]
    names = sorted({slot.parameter for of_group in slots for slot in of_group})
    products: list[list[Tensor]] = [[] for _ in groups]
    squares = [torch.zeros(len(group.units)) for group in groups]
    for gradients in sample_gradients(folded, names, batches, loss):
        moved = {name: (get_tensor(folded, name).detach() * g).float() for name, g in gradients.items()}
        for i, group in enumerate(groups):
            parts = [_sums(moved[slot.parameter], slot, group) for slot in slots[i]]
            products[i].append(torch.stack([first for first, _ in parts]).sum(0))
            squares[i] += torch.stack([second for _, second in parts]).sum(0)
    return [(torch.stack(p), s / len(p)) for p, s in zip(products, squares, strict=True)]


def mean_activity(
    captured: CapturedModule, labels: Labels, groups: list[Group], batches: Iterable[Any]
) -> list[Tensor]:
    """[n_units] of each group: mean |x| of what the next layers read, or of what makes them where none is known."""
    watched = [_read_by_next(captured, labels, group) for group in groups]
    sums = [torch.zeros(len(group.units), dtype=torch.float64) for group in groups]
    counts = [torch.zeros(len(group.units), dtype=torch.float64) for group in groups]

    class Watcher(fx.Interpreter):
        extra_traceback = False

        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            for i, group in enumerate(groups):
                if n in watched[i]:
                    _add_activity(value.detach().double().abs(), watched[i][n], group, sums[i], counts[i])
            return value

    with torch.no_grad():
        for index, batch in enumerate(batches):
            try:
                Watcher(captured).run(*placeholder_values(captured, as_args(batch)), enable_io_processing=False)
            except Exception as error:
                raise TaskError(misfit(index, error)) from error
    found = [(s / c.clamp(min=1)).float() for s, c in zip(sums, counts, strict=True)]
    if not all(bool(f.isfinite().all()) for f in found):
        raise TaskError("An activation is NaN or infinite during calibration. Check the calibration data and weights.")
    return found


def _with_bias(folded: CapturedModule, slot: Slot) -> list[Slot]:
    """slot, and the one of the bias of the same layer."""
    owner, _, leaf = slot.parameter.rpartition(".")
    bias = getattr(folded.get_submodule(owner), "bias", None) if leaf == "weight" else None
    fits = isinstance(bias, torch.nn.Parameter) and bias.shape == slot.ids.shape
    return [slot, replace(slot, parameter=f"{owner}.bias".lstrip("."), axis=0)] if fits else [slot]


def _sums(values: Tensor, slot: Slot, group: Group) -> tuple[Tensor, Tensor]:
    """Σ of values, and of their squares, over what belongs to each unit: [n_units] each."""
    along = values.movedim(slot.axis, 0).reshape(values.shape[slot.axis], -1)
    place, owned = _places(slot.ids, group)
    zero = torch.zeros(len(group.units))
    first = zero.index_add(0, place, along.sum(1)[owned])
    return first, zero.index_add(0, place, along.square().sum(1)[owned])


def _places(ids: Tensor, group: Group) -> tuple[Tensor, Tensor]:
    """For the indices whose id belongs to group: which unit, and which indices."""
    place = torch.searchsorted(group.units, ids).clamp(max=len(group.units) - 1)
    owned = group.units[place] == ids
    return place[owned], owned


def _per_unit(values: Tensor, slot: Slot, group: Group) -> Tensor:
    return rows_of_units(values[:, None], replace(slot, axis=0), group.units).amax(1)


def _read_by_next(captured: CapturedModule, labels: Labels, group: Group) -> dict[fx.Node, Tensor]:
    """Nodes whose result is the group's activation, with the ids of that result."""
    of_role: dict[str, set[str]] = {
        role: {slot.parameter for slot in group.slots if slot.role == role} for role in ("input", "output")
    }
    reading: dict[fx.Node, Tensor] = {}
    making: dict[fx.Node, Tensor] = {}
    for node in captured.graph.nodes:
        stored = {str(n.target) for n in node.all_input_nodes if n.op == "get_attr"}
        if stored & of_role["input"] and isinstance(source := arguments(node).get("input"), fx.Node):
            reading[source] = labels.values[source.name]
        if stored & of_role["output"]:
            making[node] = labels.values[node.name]
    return {n: ids for n, ids in (reading or making).items() if isinstance(ids, Tensor)}


def _add_activity(x: Tensor, ids: Tensor, group: Group, sums: Tensor, counts: Tensor) -> None:
    for axis in range(1, ids.ndim):  # axis 0 is the batch; ids vary along one other
        line = ids.movedim(axis, 0).flatten(1)[:, 0]
        place, owned = _places(line, group)
        if len(place) and len(line.unique()) > 1 and x.shape[axis] == len(line):
            means = x.movedim(axis, 0).flatten(1).mean(1)
            sums.index_add_(0, place, means[owned])
            counts.index_add_(0, place, torch.ones_like(means[owned]))
            return
