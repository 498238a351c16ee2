"""History: what a captured module was traced with, and which channels each removal kept.

A plan says how many channels stayed; to repeat a removal on a fresh module one has to know which. Both facts lie in
`module.meta`, which fx copies along, and never in the state_dict.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lighten.graph.capture import CapturedModule
from lighten.graph.labels import Labels

_INPUTS, _REMOVALS = "lighten_inputs", "lighten_removals"


@dataclass(frozen=True)
class Removal:
    """One removal of units. kept: by (parameter, axis), the indices along it that stayed, of those before it."""

    granularity: str
    kept: dict[tuple[str, int], Tensor]


def remember_inputs_(captured: CapturedModule, example_inputs: tuple[Any, ...]) -> None:
    """Keep what the inputs look like (zeros of their shapes and dtypes), so that the original can be traced again."""
    captured.meta[_INPUTS] = torch.utils._pytree.tree_map(
        lambda x: torch.zeros_like(x, device="cpu") if isinstance(x, Tensor) else x, example_inputs
    )


def remember_removal_(
    captured: CapturedModule, labels: Labels, units: Tensor, example_inputs: tuple[Any, ...], granularity: str
) -> None:
    """Keep which indices of which axes stay when units go; to be called with the labels of the module before that."""
    remember_inputs_(captured, example_inputs)
    kept = {}
    for slot in labels.slots:
        stays = ~torch.isin(slot.ids, units)
        if not stays.all():
            kept[slot.parameter, slot.axis] = stays.nonzero()[:, 0]
    captured.meta[_REMOVALS] = [*removals(captured), Removal(granularity, kept)]


def known_inputs(captured: CapturedModule) -> tuple[Any, ...] | None:
    """Inputs of the shapes that captured was traced with, or None where nobody kept them."""
    inputs: tuple[Any, ...] | None = captured.meta.get(_INPUTS)
    return inputs


def removals(captured: CapturedModule) -> list[Removal]:
    """Every removal of channels, in the order in which they were done."""
    found: list[Removal] = captured.meta.get(_REMOVALS, [])
    return found
