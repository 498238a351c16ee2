"""The state of one pass of labels: what all rules share.

Fresh ids, uniting ids that must go together, freezing ids that must stay, tying an axis of a parameter to ids, and the
choice of the axis along which ids may go on varying.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from lighten.graph.capture import CapturedModule, canonical_names, get_tensor
from lighten.graph.ids import by_index, compacted, no_ids, spread, varying_axes, without_repeats
from lighten.graph.shapes import Shapes
from lighten.graph.union import Unions, choices_left

aten = torch.ops.aten

# A parameter that meets activations element by element gets an id an element; above this many it is frozen instead.
MAX_ELEMENT_IDS = 1 << 22


@dataclass(frozen=True)
class Slot:
    """One axis of one parameter or buffer. ids [size] says which unit each index belongs to, 0 = stays.

    role: "output" where the axis makes the channels, "input" where it reads them, "carried" where it rides along
    (bias, batch norm, layer scale).
    """

    parameter: str
    axis: int
    role: str
    ids: Tensor


@dataclass
class Propagation:
    """The state of one pass: rules call its methods.

    avoid: (node name, axis) pairs along which ids were found to be frozen by a pass before. find_axis: given a node and
    the axes its ids vary along, the axis that the caller wants kept, None = no opinion.
    """

    captured: CapturedModule
    shapes: Shapes
    avoid: set[tuple[str, int]] = field(default_factory=set)
    find_axis: Callable[["Propagation", fx.Node, list[int]], int | None] | None = None
    values: dict[fx.Node, Any] = field(default_factory=dict)  # the ids of what each node computes
    unions: Unions = field(default_factory=Unions)
    slots: dict[tuple[str, int], Slot] = field(default_factory=dict)
    elements: dict[str, Tensor] = field(default_factory=dict)  # ids of parameters used element by element
    frozen: list[tuple[Tensor, str]] = field(default_factory=list)
    kept_layers: dict[str, str] = field(default_factory=dict)  # layers that are kept as a whole, and why
    zeros: set[fx.Node] = field(default_factory=set)  # nodes whose units compute 0 once their weights are 0
    choices: list[tuple[str, int, Tensor]] = field(default_factory=list)  # node, axis, the ids that were kept
    found: list[Tensor] = field(default_factory=list)  # ids along the axes that find_axis named
    blocks: list[tuple[Tensor, int, str]] = field(default_factory=list)  # ids that must repeat in blocks, else stay
    weight_views: dict[str, tuple[str, int]] = field(default_factory=dict)  # see Labels
    met: list[tuple[Tensor, str]] = field(default_factory=list)  # ids that a product of activations met, and as what

    def __post_init__(self) -> None:
        self.names = canonical_names(self.captured)

    @property
    def sizes(self) -> dict[fx.Node, Any]:
        """What each node computes, without the data."""
        return self.shapes.sizes

    def fresh(self, *shape: int) -> Tensor:
        """New ids, all different."""
        return self.unions.fresh(int(np.prod(shape, dtype=np.int64))).view(*shape)

    def unite(self, left: Tensor, right: Tensor) -> None:
        """Ids that stand at the same place in left and right (shapes broadcast) go together."""
        left, right = torch.broadcast_tensors(*without_repeats(left, right))
        self.unions.unite(torch.stack([left.reshape(-1), right.reshape(-1)]))

    def freeze(self, ids: Tensor, reason: str) -> None:
        """These ids stay, whatever else they are united with."""
        ids = without_repeats(ids)[0].reshape(-1)
        if ids.any():
            self.frozen.append((ids.unique(), reason))
            self.unite(ids, torch.zeros((), dtype=torch.int64))

    def current(self, ids: Tensor) -> Tensor:
        """The ids as far as they are united by now."""
        return compacted(self.unions.roots()[without_repeats(ids)[0]]).expand(ids.shape)

    def ids(self, value: Any) -> Any:
        """The ids that an argument of a node stands for: an activation's, or one an element of a parameter."""
        if not isinstance(value, fx.Node):
            return value
        if value.op == "get_attr":
            return self.element_ids(value)
        return self.values[value] if value in self.values else no_ids(self.sizes[value])

    def regular_ids(self, value: fx.Node) -> Tensor:
        """As ids(), united so that they vary along one axis at most, and as far as united by now."""
        ids = self.regular(value, self.ids(value))
        if value in self.values:
            self.values[value] = ids
        return ids

    def along(self, ids: Tensor, axis: int) -> Tensor:
        """The ids [size] of the indices along axis, united over all other axes."""
        flat = by_index(without_repeats(ids, keep=axis)[0], axis)
        self.unite(flat, flat[:, :1])
        return flat[:, 0]

    def tie(self, parameter: fx.Node, axis: int, role: str, ids: Tensor, part: slice | None = None) -> None:
        """The indices of parameter along axis are removed with ids [size].

        part: the indices of the axis that ids are for, where only these are used here (a fused projection, cut).
        """
        if parameter.target == aten._weight_norm.default:  # weight = v * g / |v|, the norm over all axes but dim
            v, g, dim = (*parameter.args, 0)[:3]
            assert isinstance(v, fx.Node)
            assert isinstance(g, fx.Node)
            self.tie(v, axis, role, ids)
            if axis == dim:
                self.tie(g, axis, role, ids)  # the size of a row
            return
        name = self.names[str(parameter.target)]
        known = self.slots.get((name, axis))
        if part is not None:
            if known is None:
                known = Slot(name, axis, role, self.fresh(self.sizes[parameter].shape[axis]))
            self.unite(known.ids[part], ids)
            self.slots[name, axis] = known
            return
        if known is not None:  # a shared parameter: whatever it is tied to in one place holds in the other
            self.unite(known.ids, ids)
            role = "output" if "output" in (role, known.role) else known.role
        self.slots[name, axis] = Slot(name, axis, role, ids if known is None else known.ids)

    def element_ids(self, parameter: fx.Node) -> Tensor:
        """One id an element, for a parameter that is used otherwise than as a weight."""
        tensor = self.sizes[parameter]
        if not isinstance(tensor, Tensor):
            return no_ids(tensor)  # type: ignore[no-any-return]
        name = self.names[str(parameter.target)]
        if name not in self.elements:
            small = 1 < tensor.numel() <= MAX_ELEMENT_IDS and tensor.is_floating_point()
            self.elements[name] = self.fresh(*tensor.shape) if small else torch.zeros(tensor.shape, dtype=torch.int64)
        return self.elements[name]

    def is_zero(self, value: Any) -> bool:
        """True if the units in what value stands for are 0 once everything they own is 0."""
        return isinstance(value, fx.Node) and (value.op == "get_attr" or value in self.zeros)

    def is_trained(self, parameter: fx.Node) -> bool:
        """True for a parameter, False for a buffer."""
        if parameter.op != "get_attr":
            return True
        return isinstance(get_tensor(self.captured, str(parameter.target)), torch.nn.Parameter)

    def regular(self, node: fx.Node, ids: Tensor) -> Tensor:
        """The same ids with all axes but one united, where they vary along several."""
        if len(varying_axes(ids)) < 2:
            return ids
        now = self.current(ids)  # much may have been united since
        axes = varying_axes(now)
        if len(axes) < 2:
            return now
        return spread(self.along(now, self.choose(node, now, axes)), self.choices[-1][1], ids.shape)

    def choose(self, node: fx.Node, ids: Tensor, axes: list[int]) -> int:
        """Of the axes along which ids vary, the one that may go on."""
        small = without_repeats(ids)[0]
        wanted = self.find_axis(self, node, axes) if self.find_axis else None
        open_axes = [axis for axis in axes if (node.name, axis) not in self.avoid] or axes
        keep = wanted if wanted is not None else max(open_axes, key=lambda axis: (choices_left(small, axis), axis))
        line = by_index(small, keep)[:, 0]
        self.choices.append((node.name, keep, line))
        if wanted is not None:
            self.found.append(line)
        return keep
