"""History: what a captured module was traced with, and what each removal kept or dropped.

A plan says how many channels stayed; to repeat a removal on a fresh module one has to know which. Both facts lie in
`module.meta`, which fx copies along, and never in the state_dict.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lighten.graph.capture import CapturedModule
from lighten.graph.labels import Labels

_INPUTS, _REMOVALS = "lighten_inputs", "lighten_removals"


@dataclass(frozen=True)
class Removal:
    """One removal of units, or of residual blocks.

    kept: by (parameter, axis), the indices along it that stayed, of those before it. dropped: of each block the name of
    its addition, and the place of the operand that skips it.
    """

    granularity: str
    kept: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    dropped: tuple[tuple[str, int], ...] = ()


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


def remember_drop_(
    captured: CapturedModule, dropped: tuple[tuple[str, int], ...], example_inputs: tuple[Any, ...]
) -> None:
    """Keep which residual blocks go, see Removal.dropped."""
    remember_inputs_(captured, example_inputs)
    captured.meta[_REMOVALS] = [*removals(captured), Removal("layer", dropped=dropped)]


def known_inputs(captured: CapturedModule) -> tuple[Any, ...] | None:
    """Inputs of the shapes that captured was traced with, or None where nobody kept them."""
    inputs: tuple[Any, ...] | None = captured.meta.get(_INPUTS)
    return inputs


def removals(captured: CapturedModule) -> list[Removal]:
    """Every removal of channels or blocks, in the order in which they were done."""
    found: list[Removal] = captured.meta.get(_REMOVALS, [])
    return found
