"""Granularity "layer": drop whole residual blocks, those that change the output least.

A residual block is the branch f of an addition x + f(x): without it, the addition is x. Its influence is measured: how
far the model's outputs move on calibration data when the branch alone is left out, relative to their size. Blocks that
change the shape have no skip to fall back on and stay.

Source: Veit et al., "Residual Networks Behave Like Ensembles of Relatively Shallow Networks", arXiv:1605.06431 (that
single blocks can be left out); the criterion is the measured change of the output.
"""

import copy
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from lighten.errors import ConfigError
from lighten.graph.capture import CapturedModule, canonical_names, capture
from lighten.graph.groups import matches
from lighten.graph.ids import tensors_in
from lighten.graph.shapes import node_sizes
from lighten.plan import LayerPlan
from lighten.prune.history import remember_drop_
from lighten.task import as_args

aten = torch.ops.aten
ADDITIONS = (aten.add.Tensor, aten.add_.Tensor)


@dataclass(frozen=True)
class Block:
    """The addition of a branch to what skips it. skip: which of its operands that is. layers: of the branch alone."""

    addition: str
    skip: int
    layers: tuple[str, ...]


def prune_blocks(
    model: nn.Module,
    ratio: float,
    *,
    example_inputs: tuple[Any, ...],
    calibration: Iterable[Any] | None = None,
    exclude: Iterable[str] = (),
) -> CapturedModule:
    """A copy of model without that share of its residual blocks which changes the outputs least.

    calibration: batches of inputs; None = example_inputs alone. exclude: shell patterns; a block that holds such a
    layer stays.

    Raises:
        ConfigError: ratio is outside [0, 1), or the model has no residual block. CaptureError: it cannot be traced.
    """
    if not 0 <= ratio < 1:
        raise ConfigError(f"ratio={ratio} is outside [0, 1). 0.5 removes half of the residual blocks.")
    captured, exclude = capture(model, example_inputs), tuple(exclude)
    batches = [example_inputs] if calibration is None else [as_args(batch) for batch in calibration]
    blocks = [b for b in find_blocks(captured, example_inputs) if not any(matches(x, exclude) for x in b.layers)]
    if not blocks:
        raise ConfigError(
            "granularity='layer' found no residual block x + f(x) that could be dropped. Use granularity='channel'."
        )
    influence = torch.tensor([measure_influence(captured, block, batches) for block in blocks])
    gone = [blocks[i] for i in influence.argsort(stable=True)[: round(ratio * len(blocks))].tolist()]
    drop_blocks_(captured, [(block.addition, block.skip) for block in gone], example_inputs)
    dropped = {layer: LayerPlan(granularity="layer") for block in gone for layer in block.layers}
    captured.plan = replace(captured.plan.with_layers(dropped), ratio=ratio, importance="influence")
    return captured


def drop_blocks_(captured: CapturedModule, dropped: list[tuple[str, int]], example_inputs: tuple[Any, ...]) -> None:
    """Replace these additions (by name, and the place of the operand that stays) by what skips the branch, in place.

    A block inside another that is gone already is nothing to do.
    """
    remember_drop_(captured, tuple(dropped), example_inputs)
    for addition, skip in dropped:
        _drop_(captured, Block(addition, skip, ()))
    _tidy_(captured)


def find_blocks(captured: CapturedModule, example_inputs: tuple[Any, ...]) -> list[Block]:
    """Every residual block whose branch holds a layer of its own, in the order of the graph."""
    sizes = node_sizes(captured, example_inputs)
    blocks = []
    for node in captured.graph.nodes:
        if node.target not in ADDITIONS or not all(isinstance(read, fx.Node) for read in node.args[:2]):
            continue
        for place in (0, 1):
            skip, branch = node.args[place], node.args[1 - place]
            same = [getattr(sizes[n], "shape", None) for n in (skip, node)]
            if same[0] == same[1] and skip.op == "call_function" and skip in _behind(branch):
                layers = _own_layers(captured, node, place)
                if layers:
                    blocks.append(Block(node.name, place, layers))
                break
    return blocks


def measure_influence(captured: CapturedModule, block: Block, batches: list[tuple[Any, ...]]) -> float:
    """How far the outputs move without the block, relative to their size, over all batches."""
    without = copy.deepcopy(captured)
    _drop_(without, block)
    moved = size = 0.0
    with torch.no_grad():
        for batch in batches:
            for before, after in zip(_outputs(captured, batch), _outputs(without, batch), strict=True):
                moved += float((before - after).double().square().sum())
                size += float(before.double().square().sum())
    return moved / max(size, 1e-30)


def _outputs(captured: CapturedModule, batch: tuple[Any, ...]) -> list[Tensor]:
    return [out for out in tensors_in(captured(*batch)) if out.is_floating_point()]


def _behind(node: fx.Node) -> set[fx.Node]:
    """Everything that node is computed from."""
    seen, todo = set[fx.Node](), [node]
    while todo:
        for read in todo.pop().all_input_nodes:
            if read not in seen:
                seen.add(read)
                todo.append(read)
    return seen


def _own_layers(captured: CapturedModule, addition: fx.Node, skip: int) -> tuple[str, ...]:
    """The layers whose parameters are read by nothing once the addition is its skip alone."""
    before = _read(captured)
    trial = copy.deepcopy(captured)
    _drop_(trial, Block(addition.name, skip, ()))
    gone = before - _read(trial)
    return tuple(dict.fromkeys(name.rpartition(".")[0] or name for name in sorted(gone)))


def _read(captured: CapturedModule) -> set[str]:
    return {str(node.target) for node in captured.graph.nodes if node.op == "get_attr"}


def _drop_(captured: CapturedModule, block: Block) -> None:
    by_name = {node.name: node for node in captured.graph.nodes}
    if block.addition not in by_name:  # it was part of a block that is gone
        return
    addition = by_name[block.addition]
    skip = addition.args[block.skip]  # by place: a block before it may be gone, and its addition with it
    assert isinstance(skip, fx.Node)
    addition.replace_all_uses_with(skip)
    captured.graph.erase_node(addition)
    captured.graph.eliminate_dead_code()
    captured.recompile()


def _tidy_(captured: CapturedModule) -> None:
    """Delete the parameters and buffers that no node reads any more."""
    names = canonical_names(captured)
    read = {names[name] for name in _read(captured) if name in names}
    for name, first in names.items():
        if first not in read:
            owner, _, leaf = name.rpartition(".")
            delattr(captured.get_submodule(owner), leaf)
