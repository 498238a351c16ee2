"""Choices: what the search decides, one by one, and what each option would do to the weights.

"channels" of one group of layers that must agree, "zeros" in blocks of one layer. Options are shares that go, ascending
from 0. An option is known by what it does to the weights: removing equals zeroing, so its harm can be measured without
surgery.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lighten.graph.capture import CapturedModule, get_tensor
from lighten.graph.groups import Group
from lighten.graph.labels import Labels
from lighten.prune.allocate import share_gone
from lighten.prune.channels import unit_rows
from lighten.prune.importance.readers import without_readers
from lighten.prune.importance.unit_data import score_units
from lighten.prune.layers import WeightLayer, find_layers
from lighten.prune.patterns import keep_mask, parse_pattern
from lighten.prune.select import SelectConfig, select_units

Changes = dict[str, Tensor]
MOST_BYTES = 2**32  # of second moments, all layers' together


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


@dataclass(frozen=True)
class Ranking:
    """What channels are ranked by: the name of a criterion; because: why it is l2 instead of obs, or ""."""

    importance: str
    because: str = ""


def ranking(captured: CapturedModule, labels: Labels, groups: Sequence[Group], importance: str) -> Ranking:
    """importance, or l2 where it is obs and cannot rank them all, or not in MOST_BYTES."""
    if importance != "obs":
        return Ranking(importance)
    if unread := without_readers(captured, labels, list(groups)):
        n = f"{len(unread)} of {len(groups)} groups ('{unread[0]}')"
        return Ranking("l2", f"obs knows no linear layer, convolution or product that reads the channels of {n}")
    columns = [get_tensor(captured, layer.parameter)[0].numel() for layer in find_layers(captured)[0]]
    if (n_bytes := 8 * sum(n**2 for n in columns)) > MOST_BYTES:
        return Ranking("l2", f"obs would need {n_bytes / 2**30:.1f} GiB for what layers read, {max(columns)} at most")
    return Ranking(importance)


def channel_choices(
    captured: CapturedModule,
    labels: Labels,
    groups: Sequence[Group],
    shares: Sequence[float],
    round_to: int,
    importance: str = "l2",
    batches: Iterable[Any] | None = None,
) -> list[ChannelChoice]:
    """One for each set of groups that the same layer names. importance, batches: see score_units."""
    scores = score_units(captured, labels, list(groups), unit_rows(captured, list(groups)), importance, batches)
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
