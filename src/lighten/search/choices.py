"""Choices: what the search decides, one by one, and what each option would do to the weights.

"channels" of one group of layers that must agree, "zeros" in blocks of one layer. Options are shares that go, ascending
from 0. An option is known by what it makes zero: removing equals zeroing, so its harm can be measured without surgery.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lighten.graph.capture import CapturedModule, get_tensor
from lighten.graph.groups import Group
from lighten.graph.labels import Labels
from lighten.prune.allocate import share_gone
from lighten.prune.channels import unit_rows
from lighten.prune.importance.unit_data import score_units
from lighten.prune.layers import WeightLayer
from lighten.prune.patterns import keep_mask, parse_pattern
from lighten.prune.select import SelectConfig, select_units

Changes = dict[str, Tensor]


@dataclass(frozen=True)
class Choice:
    """kind: "channels" or "zeros". name: of the layer that pruning's overrides name. options: shares that really go."""

    kind: str
    name: str
    options: tuple[float, ...]

    @property
    def key(self) -> str:
        """Unique among the choices of a network."""
        return f"{self.kind}:{self.name}"


@dataclass(frozen=True)
class ChannelChoice(Choice):
    """gone: the ids of the units that each option takes out."""

    gone: tuple[Tensor, ...]


def channel_choices(
    captured: CapturedModule, labels: Labels, groups: Sequence[Group], shares: Sequence[float], round_to: int
) -> list[ChannelChoice]:
    """One for each set of groups that the same layer names; by the size of their filters."""
    scores = score_units(captured, labels, list(groups), unit_rows(captured, list(groups)), "l2")
    together: dict[str, list[int]] = {}
    for i, group in enumerate(groups):
        together.setdefault(group.name, []).append(i)
    found = []
    for name, members in together.items():
        units = sum(len(groups[i].units) for i in members)
        options: dict[float, Tensor] = {}
        for share in shares:
            gone = select_units(
                [scores[i] for i in members], SelectConfig(ratio=share, scope="layer", round_to=round_to)
            )
            ids = torch.cat([groups[i].units[indices] for i, indices in zip(members, gone, strict=True)])
            options.setdefault(len(ids) / units, ids)
        found.append(ChannelChoice("channels", name, tuple(options), tuple(options.values())))
    return found


def zero_choices(layers: Iterable[WeightLayer], shares: Sequence[float]) -> list[Choice]:
    """One for each of layers."""
    return [Choice("zeros", layer.name, tuple(shares)) for layer in layers]


def zeroed_blocks(captured: CapturedModule, layer: WeightLayer, share: float, pattern: str) -> Changes:
    """The layer's weight without that share of its blocks, the smallest ones; blocks that are zero count."""
    weight, blocks = get_tensor(captured, layer.parameter).detach(), parse_pattern(pattern)
    units = blocks.units(blocks.matrix(weight.square()))
    mask = blocks.restore(blocks.spread(keep_mask(units, share_gone(units.numel(), share))), weight.shape)
    return {layer.parameter: weight * mask}


def input_choice(labels: Labels, parameter: str, groups: Sequence[Group]) -> str | None:
    """The name of the group that most of the input channels of that weight belong to; None where most are not free."""
    return _most(labels, parameter, 1, groups)


def output_choice(labels: Labels, parameter: str, groups: Sequence[Group]) -> str | None:
    """The same of its output channels."""
    return _most(labels, parameter, 0, groups)


def _most(labels: Labels, parameter: str, axis: int, groups: Sequence[Group]) -> str | None:
    ids = next((s.ids for s in labels.slots if s.parameter == parameter and s.axis == axis), None)
    if ids is None:
        return None
    count: dict[str, int] = {}
    for group in groups:
        count[group.name] = count.get(group.name, 0) + int(torch.isin(ids, group.units).sum())
    best = max(count, key=lambda name: count[name], default=None)
    return best if best is not None and 2 * count[best] > len(ids) else None
