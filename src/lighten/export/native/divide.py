"""Divide: which part of a model the engine computes, where it cannot compute all of it.

What the engine can do is asked of its reader, region by region: a node that it refuses goes to ONNX Runtime, the graph
is divided anew, and so on until every region of the engine is read. A region goes there as well where what it can save,
its multiplications by zero, takes less time than passing its tensors from one runtime to the other; of several such
regions the one that saves least first, since its neighbours may become one without it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import fx

from lighten.export.native.reader import RefusalError
from lighten.export.native.regions import Flow, Region, n_numbers, root

NOT_THE_BATCH = "its tensors cannot pass from one runtime to the other, since the first axis is not the batch"
NO_GAIN = "the engine would save less than passing tensors to it costs"

Write = Callable[[Path, str], None]
"""Puts the files of a part into a folder, with that prefix before their names."""
Read = Callable[[fx.GraphModule], Write]
"""A module as the engine's files; raises RefusalError."""


@dataclass(frozen=True, kw_only=True)
class HandOver:
    """What it costs to pass from ONNX Runtime to the engine and back, in multiply–accumulates that take as long.

    macs: in any case. macs_per_number: for each number of a sample that passes. Measured on one core of a Zen 4, with
    convolutions of no weight between operators of ONNX Runtime: 16 µs and 0.35 ns, where ONNX Runtime does 50
    multiply–accumulates in a nanosecond.
    """

    macs: int = 800_000
    macs_per_number: int = 18

    def cost(self, flow: Flow, region: Region) -> int:
        """Of that region of the engine. What comes from the caller, or goes to it, is passed in any case."""
        taken = [node for node in region.inputs if node.op != "placeholder"]
        return self.macs + self.macs_per_number * n_numbers([*taken, *flow.read_later(region)])


MEASURED = HandOver()


@dataclass(frozen=True)
class Division:
    """regions: in the order of their turns. written: those of the engine. refused: the others' nodes, with reasons."""

    regions: Sequence[Region]
    written: Mapping[Region, Write]
    refused: Mapping[fx.Node, str]


def divide(flow: Flow, read: Read, saved: Mapping[fx.Node, int], hand_over: HandOver) -> Division:
    """Regions of the engine, which it has read and in which it saves more than handing over costs; and the rest.

    saved: multiply–accumulates of one sample, of the nodes that have any.
    """
    written: dict[Region, Write] = {}
    refused: dict[fx.Node, str] = {}
    while True:
        regions = flow.regions(refused)
        own = [region for region in regions if region.is_native]
        more = _stuck(flow, regions) or _unread(flow, own, written, read) or _no_gain(flow, own, saved, hand_over)
        if not more:
            return Division(regions, {region: written[region] for region in own}, refused)
        assert not more.keys() & refused.keys()
        refused |= more


def total(region: Region, macs: Mapping[fx.Node, int]) -> int:
    """Over the nodes of region."""
    return sum(macs.get(node, 0) for node in region.nodes)


def _stuck(flow: Flow, regions: Sequence[Region]) -> dict[fx.Node, str]:
    """What the engine leaves because of tensors that cannot pass: those who make or read them, or stand between."""
    made_in = {node: region.turn for region in regions for node in region.nodes}
    for region in regions:
        barred = [node for node in region.inputs if not flow.can_pass(node)]
        if region.is_native:
            left = [node for node in region.outputs if not flow.can_pass(node)]
            left += [node for node in region.nodes if set(barred).intersection(node.all_input_nodes)]
        else:
            since = min((made_in[node] for node in barred if node in made_in), default=region.turn)
            between = [other for other in regions if other.is_native and since < other.turn < region.turn]
            left = [node for other in between for node in other.nodes]
        if left:
            return {root(node): NOT_THE_BATCH for node in left}
    return {}


def _unread(flow: Flow, own: Sequence[Region], written: dict[Region, Write], read: Read) -> dict[fx.Node, str]:
    """What the engine refuses first; before that, regions that it does not are written."""
    for region in own:
        if region not in written:
            module, originals = flow.module_of(region)
            try:
                written[region] = read(module)
            except RefusalError as refusal:
                return {root(node): refusal.reason for node in flow.inner(originals[refusal.node], region)}
    return {}


def _no_gain(
    flow: Flow, own: Sequence[Region], saved: Mapping[fx.Node, int], hand_over: HandOver
) -> dict[fx.Node, str]:
    """The nodes of the region that saves least, if that is too little."""
    small = [region for region in own if total(region, saved) <= hand_over.cost(flow, region)]
    least = min(small, key=lambda region: total(region, saved), default=None)
    return {} if least is None else dict.fromkeys(least.nodes, NO_GAIN)
