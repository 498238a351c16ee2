"""Structured pruning: rank the units of every group, take the least important out of the graph."""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lighten.errors import ConfigError
from lighten.graph.capture import CapturedModule, capture, get_tensor
from lighten.graph.fold import fold_batch_norm_
from lighten.graph.groups import Group, layer_name, matches, rows_of_units
from lighten.graph.labels import Labels, propagate
from lighten.graph.rewrite import check_equals_zeroing, remove_units_
from lighten.plan import LayerPlan, Plan
from lighten.prune import importance as _importance  # noqa: F401  importing the package fills the registries
from lighten.prune.gradients import Loss
from lighten.prune.heads import groups_of
from lighten.prune.history import remember_removal_
from lighten.prune.importance.unit_data import comparable, score_units
from lighten.prune.layers import check_finite, refuse_quantized
from lighten.prune.overrides import own_ratios
from lighten.prune.refit import refit_
from lighten.prune.select import SelectConfig, select_units
from lighten.prune.unit_macs import unit_macs


def prune_channels(
    model: nn.Module,
    config: SelectConfig,
    *,
    importance: str,
    granularity: str = "channel",
    example_inputs: tuple[Any, ...],
    calibration: Iterable[Any] | None = None,
    loss: Loss | None = None,
    overrides: Mapping[str, float] | None = None,
    exclude: Iterable[str] = (),
    refit: Iterable[Any] | None = None,
) -> CapturedModule:
    """A copy of model without the units that config selects by the criterion of that name; see lighten.prune.

    It is run on example_inputs and held against the model in which the same units are zero. refit: batches of inputs on
    which the layers that lost inputs are then fitted, see lighten.prune.refit; None = they are not.

    Raises:
        ConfigError: an unknown criterion, one that does not go with the scope, an override that fits no layer, no heads
        where heads were asked for, or the model is quantized.
        TaskError: the criterion looks at data, and there is none or it does not fit.
        CaptureError: the model cannot be traced, a weight is NaN or infinite, or the check failed.
    """
    if config.scope == "macs" and importance not in comparable():
        raise ConfigError(
            f"scope='macs' weighs importance against cost, but scores of '{importance}' do not compare between layers. "
            f"Use one of {', '.join(comparable())}, or scope='global'."
        )
    captured, exclude = capture(model, example_inputs), tuple(exclude)
    refuse_quantized(captured)
    labels = propagate(captured, example_inputs, keep=granularity)
    groups = groups_of(labels, granularity, exclude)
    for slot in (slot for group in groups for slot in group.slots):
        check_finite(layer_name(slot), get_tensor(captured, slot.parameter))
    rows = unit_rows(captured, groups)
    scores = score_units(captured, labels, groups, rows, importance, calibration, loss)
    costs = unit_macs(captured, groups, example_inputs) if config.scope == "macs" else None
    gone = select_units(scores, config, own_ratios([group.producers for group in groups], overrides or {}), costs)
    units = torch.cat([torch.zeros(0, dtype=torch.int64), *(g.units[i] for g, i in zip(groups, gone, strict=True))])
    before = copy.deepcopy(captured)
    dense = None if refit is None else copy.deepcopy(captured)
    remember_removal_(captured, labels, units, example_inputs, granularity)
    remove_units_(captured, labels, units, example_inputs)
    check_equals_zeroing(before, labels, units, captured, example_inputs)
    left = {} if dense is None or refit is None else refit_(dense, captured, refit)
    spared = _spared(groups_of(labels, granularity, ()), exclude) if exclude else {}
    recorded = _record(captured.plan, labels, groups, units, granularity, spared)
    recorded = recorded.with_layers({}, skipped=left, refit=refit is not None)
    captured.plan = replace(recorded, ratio=config.ratio, importance=importance, scope=config.scope)
    return captured


def unit_rows(captured: CapturedModule, groups: list[Group]) -> list[Tensor]:
    """For each group [n_units, elements]: the weights that make each unit, as they run in eval mode.

    Batch norm is folded in first: before it, the size of a filter says nothing about the size of its channel.
    """
    folded = copy.deepcopy(captured)
    fold_batch_norm_(folded)
    return [
        torch.cat(
            [
                rows_of_units(get_tensor(folded, slot.parameter).detach().float(), slot, group.units)
                for slot in group.slots
                if slot.role == "output"
            ],
            dim=1,
        )
        for group in groups
    ]


def _spared(groups: list[Group], exclude: tuple[str, ...]) -> dict[str, str]:
    """Why the layers of groups stay, if it is for what was excluded."""
    layers = [layer for group in groups for layer in group.producers]
    return {layer: "excluded" if matches(layer, exclude) else "tied to a layer that is excluded" for layer in layers}


def _record(
    plan: Plan, labels: Labels, groups: list[Group], units: Tensor, granularity: str, spared: dict[str, str]
) -> Plan:
    touched: dict[str, LayerPlan] = {}
    for group in groups:
        for slot in group.slots:
            if slot.role == "output":
                layer, kept = layer_name(slot), int((~torch.isin(slot.ids, units)).sum())
                before = plan.layers.get(layer, LayerPlan()).channels or len(slot.ids)  # of the first of several steps
                touched[layer] = LayerPlan(channels=before, kept=kept, granularity=granularity)
    why = {**spared, **labels.frozen}
    skipped = {layer: f"not pruned: {reason}" for layer, reason in why.items() if layer not in touched}
    return plan.with_layers(touched, skipped=skipped)
