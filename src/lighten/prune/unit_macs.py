"""What each unit costs: the multiply–accumulates that go with it.

A channel less takes its share off the layers that make it and off those that read it. Products of activations with each
other are left out: they own no weight.
"""

from typing import Any

import torch
from torch import Tensor, fx

from lighten.graph.capture import CapturedModule, canonical_names
from lighten.graph.count import node_macs
from lighten.graph.groups import Group


def unit_macs(captured: CapturedModule, groups: list[Group], example_inputs: tuple[Any, ...]) -> list[Tensor]:
    """[n_units] float64 of each group, while all others are still there."""
    of_parameter = _macs_by_parameter(captured, example_inputs)
    found = []
    for group in groups:
        macs = torch.zeros(len(group.units), dtype=torch.float64)
        for slot in group.slots:
            if slot.role in ("input", "output"):
                owned = (slot.ids == group.units[:, None]).sum(1)
                macs += of_parameter.get(slot.parameter, 0) * owned / len(slot.ids)
        found.append(macs)
    return found


def _macs_by_parameter(captured: CapturedModule, example_inputs: tuple[Any, ...]) -> dict[str, int]:
    names, found = canonical_names(captured), dict[str, int]()
    for node, macs in node_macs(captured, example_inputs).items():
        stored = {_stored(n) for n in node.all_input_nodes} - {None}
        for name in {names[str(n.target)] for n in stored if n is not None}:
            found[name] = found.get(name, 0) + macs
    return found


def _stored(node: fx.Node) -> fx.Node | None:
    """The parameter or buffer that node is, or is a view of: transposed, cut, or by weight norm."""
    while node.op != "get_attr":
        if not node.all_input_nodes or (len(node.all_input_nodes) > 1 and "weight_norm" not in str(node.target)):
            return None
        node = node.all_input_nodes[0]
    return node
