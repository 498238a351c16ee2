"""Groups: the channels of several layers that must go together, as units that one can rank and remove.

A unit is one id: everything it labels is removed at once. A group is the set of units that live on the same axes of the
same parameters, so that they are alike and can be ranked: the channels of two convolutions whose outputs are added form
one group; those of two convolutions whose outputs are concatenated form two. Units that make up a tensor of their own,
as queries do in a fused projection, form a group too: so every layer and every tensor keeps something as long as every
group keeps something.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch

import torch
from torch import Tensor

from lighten.graph.labels import Labels, Slot


@dataclass(frozen=True)
class Group:
    """units [n_units]: their ids. producers: the layers that make these channels; the first one names the group."""

    units: Tensor
    producers: tuple[str, ...]
    slots: tuple[Slot, ...]

    @property
    def name(self) -> str:
        """The first layer that makes these channels."""
        return self.producers[0]


def find_groups(labels: Labels, exclude: Iterable[str] = ()) -> list[Group]:
    """Every group that pruning may touch, in the order of the graph.

    exclude: shell patterns over layer names; a unit that touches such a layer, on its input or output, stays.
    """
    forbidden = [slot.ids for slot in labels.slots if matches(layer_name(slot), exclude)]
    stays = {0, *torch.cat([torch.zeros(1, dtype=torch.int64), *forbidden]).tolist()}
    homes: dict[int, list[int]] = {}  # unit -> the slots it lives in
    for place, slot in enumerate(labels.slots):
        for unit in slot.ids.unique().tolist():
            homes.setdefault(unit, []).append(place)
    lines: dict[int, list[int]] = {}  # unit -> the tensors it is part of
    for place, line in enumerate(labels.lines):
        for unit in line.tolist():
            lines.setdefault(unit, []).append(place)
    members: dict[tuple[tuple[int, ...], tuple[int, ...]], list[int]] = {}
    for unit, places in sorted(homes.items()):
        if unit not in stays:
            members.setdefault((tuple(places), tuple(lines.get(unit, ()))), []).append(unit)
    groups = []
    for (living, _), units in members.items():
        slots = tuple(labels.slots[place] for place in living)
        producers = tuple(dict.fromkeys(layer_name(slot) for slot in slots if slot.role == "output"))
        if producers:  # ids without a producer belong to parameters that ride on nothing prunable
            groups.append(Group(torch.tensor(units), producers, slots))
    return groups


def layer_name(slot: Slot) -> str:
    """The layer that owns the slot's parameter."""
    return slot.parameter.rpartition(".")[0] or slot.parameter


def matches(name: str, patterns: Iterable[str]) -> bool:
    """True if name, or a module that contains it, matches one of the shell patterns."""
    parts = name.split(".")
    paths = [".".join(parts[: i + 1]) for i in range(len(parts))]
    return any(fnmatch(path, pattern) for path in paths for pattern in patterns)


def rows_of_units(weight: Tensor, slot: Slot, units: Tensor) -> Tensor:
    """What belongs to each unit: [n_units, elements], zero-padded where units own different amounts."""
    along = weight.movedim(slot.axis, 0).flatten(1)
    order = torch.searchsorted(units, slot.ids).clamp(max=len(units) - 1)
    owned = units[order] == slot.ids
    index, rows = order[owned], along[owned]
    place = torch.zeros_like(index)  # how many rows of the same unit come before
    sorted_index, by_unit = index.sort(stable=True)
    starts = torch.searchsorted(sorted_index, torch.arange(len(units)))
    place[by_unit] = torch.arange(len(index)) - starts[sorted_index]
    most = int(place.max()) + 1 if len(place) else 0
    out = weight.new_zeros(len(units), most, along.shape[1])
    out[index, place] = rows
    return out.flatten(1)
