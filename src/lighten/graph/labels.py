"""Labels: which elements of which tensors must be removed together, found by letting ids flow through the graph.

Every prunable channel gets an id. A tensor of ids stands for each activation, of the activation's own shape; id 0 means
"stays". What an operator does to ids is said in `rules.py`; here is what all rules share: fresh ids, uniting ids that
must go together, freezing ids that must stay, and tying an axis of a parameter to ids.

Ids are kept *regular*: what is left of a tensor after removal must again be a full grid, so along at most one of its
axes may different things be removed. Where ids vary along two axes (a channel axis split in two by `view`), those that
share an index along the axis that leaves the most choice are united.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves, tree_map_only

from lighten.graph.capture import CapturedModule, flat_inputs, get_tensor, with_batch_of_two

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


@dataclass(frozen=True)
class Labels:
    """The outcome of the pass. Ids are already united: equal id = removed together.

    values: by node name, the ids of what it computes (a list of them where it returns several). slots: every axis that
    can shrink. frozen: layers whose channels stay although they might have gone, with the reason.
    """

    values: dict[str, Any]
    slots: list[Slot]
    frozen: dict[str, str]


@dataclass
class Propagation:
    """The state of one pass: rules call its methods."""

    captured: CapturedModule
    sizes: dict[fx.Node, Any]  # what each node computes, without the data
    values: dict[fx.Node, Any] = field(default_factory=dict)  # the ids of what each node computes
    n_ids: int = 1  # id 0 is "stays"
    edges: list[Tensor] = field(default_factory=list)  # each [2, n]: ids to unite
    slots: dict[tuple[str, int], Slot] = field(default_factory=dict)
    elements: dict[str, Tensor] = field(default_factory=dict)  # ids of parameters used element by element
    frozen: list[tuple[Tensor, str]] = field(default_factory=list)

    def fresh(self, *shape: int) -> Tensor:
        """New ids, all different."""
        count = int(np.prod(shape, dtype=np.int64))
        first, self.n_ids = self.n_ids, self.n_ids + count
        return torch.arange(first, first + count).view(*shape)

    def unite(self, left: Tensor, right: Tensor) -> None:
        """Ids that stand at the same place in left and right (shapes broadcast) go together."""
        left, right = torch.broadcast_tensors(*_without_repeats(left, right))
        pairs = torch.stack([left.reshape(-1), right.reshape(-1)])
        pairs = pairs[:, pairs[0] != pairs[1]]
        if pairs.shape[1]:
            self.edges.append(pairs.unique(dim=1) if pairs.shape[1] > 4096 else pairs)

    def freeze(self, ids: Tensor, reason: str) -> None:
        """These ids stay, whatever else they are united with."""
        ids = _without_repeats(ids)[0].reshape(-1)
        if ids.any():
            self.frozen.append((ids.unique(), reason))
            self.unite(ids, torch.zeros((), dtype=torch.int64))

    def ids(self, value: Any) -> Any:
        """The ids that an argument of a node stands for: an activation's, or one an element of a parameter."""
        if not isinstance(value, fx.Node):
            return value
        return self.element_ids(value) if value.op == "get_attr" else self.values[value]

    def along(self, ids: Tensor, axis: int) -> Tensor:
        """The ids [size] of the indices along axis, united over all other axes."""
        flat = _without_repeats(ids, keep=axis)[0].movedim(axis, 0).flatten(1)
        self.unite(flat, flat[:, :1])
        return flat[:, 0]

    def tie(self, parameter: fx.Node, axis: int, role: str, ids: Tensor) -> None:
        """The indices of parameter along axis are removed with ids [size]."""
        name = str(parameter.target)
        known = self.slots.get((name, axis))
        if known is None:
            self.slots[name, axis] = Slot(name, axis, role, ids)
        else:  # a shared parameter: whatever it is tied to in one place holds in the other
            self.unite(known.ids, ids)

    def element_ids(self, parameter: fx.Node) -> Tensor:
        """One id an element, for a parameter that is used otherwise than as a weight."""
        name = str(parameter.target)
        if name not in self.elements:
            tensor = get_tensor(self.captured, name)
            small = tensor.ndim > 0 and tensor.numel() <= MAX_ELEMENT_IDS and tensor.is_floating_point()
            self.elements[name] = self.fresh(*tensor.shape) if small else torch.zeros(tensor.shape, dtype=torch.int64)
        return self.elements[name]

    def roots(self) -> Tensor:
        """[n_ids] one representative for each set of united ids; 0 for all that stay."""
        if not self.edges:
            return torch.arange(self.n_ids)
        left, right = torch.cat(self.edges, dim=1).numpy()
        links = coo_array((np.ones(len(left), dtype=np.int8), (left, right)), shape=(self.n_ids, self.n_ids))
        count, component = connected_components(links, directed=False)
        first = np.full(count, self.n_ids, dtype=np.int64)
        np.minimum.at(first, component, np.arange(self.n_ids))
        return torch.from_numpy(first[component])


def propagate(captured: CapturedModule, example_inputs: tuple[Any, ...]) -> Labels:
    """Let ids flow through captured.

    example_inputs: any batch; only shapes matter.
    """
    from lighten.graph.rules import outputs_stay, rule_for

    state = Propagation(captured, node_sizes(captured, example_inputs))
    for node in captured.graph.nodes:
        if node.op == "placeholder":
            state.values[node] = no_ids(state.sizes[node])
        elif node.op == "output":
            outputs_stay(state, node)
        elif node.op != "get_attr":
            made = rule_for(node)(state, node)
            state.values[node] = tree_map_only(Tensor, lambda ids: _regular(state, ids), made)
    _untie_mixed_use(state)
    for ids in state.elements.values():
        _regular(state, ids)
    return _collect(state)


def node_sizes(captured: CapturedModule, example_inputs: tuple[Any, ...]) -> dict[fx.Node, Any]:
    """What every node computes on example_inputs: tensors without data (device "meta"), numbers as they are."""
    sizes: dict[fx.Node, Any] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            sizes[n] = tree_map_only(Tensor, lambda t: t.detach().to("meta"), value)
            return value

    inputs = with_batch_of_two(example_inputs) if captured.batch_is_dynamic else example_inputs
    with torch.no_grad():
        Recorder(captured).run(*flat_inputs(inputs), enable_io_processing=False)
    return sizes


def varies(ids: Tensor, axis: int) -> bool:
    """True where different things stand along axis."""
    if ids.shape[axis] <= 1 or ids.stride(axis) == 0:
        return False
    compact = _without_repeats(ids, keep=axis)[0]
    return bool((compact != compact.narrow(axis, 0, 1)).any())


def _without_repeats(*tensors: Tensor, keep: int | None = None) -> tuple[Tensor, ...]:
    """The tensors cut to one index along axes that all of them merely repeat (stride 0)."""
    if len({t.ndim for t in tensors}) > 1:
        return tensors
    for axis in range(tensors[0].ndim):
        if axis != keep and all((t.stride(axis) == 0 and t.shape[axis] > 0) or t.shape[axis] == 1 for t in tensors):
            tensors = tuple(t.narrow(axis, 0, 1) for t in tensors)
    return tensors


def no_ids(size: Any) -> Any:
    """Ids 0 in the shape of size; what is not a tensor stays as it is."""
    return tree_map_only(Tensor, lambda t: torch.zeros((), dtype=torch.int64).expand(t.shape), size)


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors in a nest of tuples, lists and dicts."""
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def _untie_mixed_use(state: Propagation) -> None:
    """A parameter used both as a weight and otherwise (a computed weight, say) keeps its size."""
    for (name, _), slot in state.slots.items():
        if name in state.elements:
            state.freeze(slot.ids, f"{name} is used as a weight and otherwise")
            state.freeze(state.elements[name], f"{name} is used as a weight and otherwise")


def _regular(state: Propagation, ids: Tensor) -> Tensor:
    """The same ids with all axes but one united, where they vary along several."""
    if sum(varies(ids, axis) for axis in range(ids.ndim)) < 2:
        return ids
    compact = state.roots()[_without_repeats(ids)[0]]  # much may have been united since
    axes = [axis for axis in range(ids.ndim) if varies(compact, axis)]
    if not axes:
        return compact.expand(ids.shape)
    keep = max(axes, key=lambda axis: (_choices_left(compact, axis), -axis))
    line = state.along(compact, keep)
    return line.view([-1 if axis == keep else 1 for axis in range(ids.ndim)]).expand(ids.shape)


def _choices_left(ids: Tensor, axis: int) -> int:
    """How many separate units are left when ids that share an index along axis are united."""
    _, compact = ids.unique(return_inverse=True)
    flat = compact.movedim(axis, 0).flatten(1)
    left, right = flat.reshape(-1).numpy(), flat[:, :1].expand_as(flat).reshape(-1).numpy()
    n = int(compact.max()) + 1
    links = coo_array((np.ones(len(left), dtype=np.int8), (left, right)), shape=(n, n))
    return int(connected_components(links, directed=False)[0])


def _collect(state: Propagation) -> Labels:
    roots = state.roots()

    def united(ids: Tensor) -> Tensor:
        return roots[_without_repeats(ids)[0]].expand(ids.shape)

    slots = [replace(slot, ids=roots[slot.ids]) for slot in state.slots.values()]
    for name, ids in state.elements.items():
        for axis in range(ids.ndim):
            if varies(united(ids), axis):
                slots.append(Slot(name, axis, "carried", united(ids).movedim(axis, 0).flatten(1)[:, 0]))
    reason_of = {int(i): reason for ids, reason in reversed(state.frozen) for i in ids}
    frozen: dict[str, str] = {}
    for slot in state.slots.values():
        if slot.role == "output":
            stay = slot.ids[roots[slot.ids] == 0].tolist()
            if stay:
                reason = next((reason_of[i] for i in stay if i in reason_of), "tied to channels that must stay")
                frozen.setdefault(slot.parameter.rpartition(".")[0], reason)
    values = {node.name: tree_map_only(Tensor, united, value) for node, value in state.values.items()}
    return Labels(values, [s for s in slots if s.ids.any()], frozen)
