"""A model that the engine cannot compute alone, lowered in parts: its own, and those of ONNX Runtime between them.

What zeros save decides which parts are the engine's. Where they save nothing anywhere, as in a model that is still to
be pruned, they are those in which zeros could, so that it can be measured what such a model costs before.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from lighten.errors import CaptureError
from lighten.export.native.divide import HandOver, Read, Write, divide, total
from lighten.export.native.regions import Flow, Region, root
from lighten.export.onnx import tensor_specs, to_onnx
from lighten.export.torch import batch_symbols, spec_of
from lighten.graph.count import macs_of_nodes, one_sample
from lighten.runtime.native.parts import NATIVE, ONNXRUNTIME, PARTS, Part, Parts, prefix
from lighten.runtime.onnxruntime import MODEL
from lighten.runtime.spec import TensorSpec


def to_parts(
    module: fx.GraphModule, inputs: Sequence[Tensor], read: Read, hand_over: HandOver
) -> tuple[Callable[[Path], None], list[dict[str, Any]]]:
    """What writes the parts of module into a folder, and what a manifest says of each.

    inputs: an example of each.

    Raises:
        CaptureError: no part has work enough for the engine, or ONNX Runtime cannot compute one of the others.
    """
    flow, values = Flow(module), one_sample(tuple(inputs))
    _must_be_divisible(flow)
    made, symbols = _values(module, values), batch_symbols(flow.inputs)
    macs = {node: n for node, n in macs_of_nodes(module, values).items() if flow.weights(node)}
    by_zero = {node: round(n * _zeros([made[weight] for weight in flow.weights(node)])) for node, n in macs.items()}
    division = divide(flow, read, by_zero, hand_over)
    if not division.written:
        division = divide(flow, read, macs, hand_over)
    if not division.written:
        raise CaptureError(
            f"Without it, no part of the model has so many multiplications by weights, {sum(macs.values())} in all, "
            "that the engine could gain what passing tensors to it costs. Export to onnxruntime."
        )
    parts, writes, notes = [], [], []
    for region in division.regions:
        runtime = NATIVE if region.is_native else ONNXRUNTIME
        takes, makes = (
            tuple(spec_of(node.name, node, symbols) for node in nodes) for nodes in (region.inputs, region.outputs)
        )
        is_own = region in division.written
        parts.append(Part(runtime=runtime, inputs=takes, outputs=makes))
        writes.append(division.written[region] if is_own else _onnx(flow, region, takes, made))
        notes.append(_note(runtime, region, total(region, macs), total(region, by_zero), division.refused))
    whole = Parts(tuple(parts), tuple(node.name for node in flow.returned))

    def write_files(folder: Path) -> None:
        (folder / PARTS).write_text(whole.to_json(), encoding="utf-8")
        for at, write in enumerate(writes):
            write(folder, prefix(at))

    return write_files, notes


def _must_be_divisible(flow: Flow) -> None:
    """Raises CaptureError: it is not a model that can be divided."""
    if alone := [node.name for node in flow.returned if node not in (*flow.inputs, *flow.nodes)]:
        raise CaptureError(f"In parts it cannot run, for its outputs {alone} do not depend on its inputs.")
    if single := [node.name for node in flow.inputs if not flow.can_pass(node)]:
        raise CaptureError(f"In parts it cannot run, for its inputs {single} have no batch.")
    if any(str(node.target).startswith("lighten.") for node in flow.nodes):
        raise CaptureError(
            "In parts it would be slow, for it is quantized, and ONNX Runtime computes with integers only where what "
            "quantizes and what reads it are in one model. Export to onnxruntime."
        )


def _zeros(weights: Sequence[Tensor]) -> float:
    """The share of zeros."""
    return sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)


def _values(module: fx.GraphModule, inputs: Sequence[Tensor]) -> Mapping[fx.Node, Any]:
    """What each node makes of the inputs."""
    interpreter = fx.Interpreter(module, garbage_collect_values=False)
    with torch.no_grad():
        interpreter.run(*inputs, enable_io_processing=False)
    return interpreter.env


def _onnx(flow: Flow, region: Region, inputs: Sequence[TensorSpec], made: Mapping[fx.Node, Any]) -> Write:
    """Raises CaptureError: region has no counterpart in ONNX, or only one for a fixed batch."""
    proto = to_onnx(flow.module_of(region)[0], tuple(made[node] for node in region.inputs))
    found, wanted = ([(spec.dtype, spec.shape) for spec in specs] for specs in (tensor_specs(proto)[0], inputs))
    if found != wanted:
        raise CaptureError(
            f"The part for ONNX Runtime that begins at '{region.nodes[0].name}' would read {found} and not {wanted}. "
            "Export the whole model to onnxruntime."
        )

    def write(folder: Path, prefix: str) -> None:
        (folder / (prefix + MODEL)).write_bytes(proto.SerializeToString())

    return write


def _note(runtime: str, region: Region, macs: int, by_zero: int, refused: Mapping[fx.Node, str]) -> dict[str, Any]:
    """Plain data. macs, by_zero: by weights and by those that are zero, of one sample. operators: how many of each.
    nodes: of the graph. why: for each reason for which the engine has not got operators of ONNX Runtime's, which."""
    computed = [node for node in region.nodes if root(node) is node]
    why: dict[str, dict[str, None]] = {}
    for node in computed:
        if node in refused:
            why.setdefault(refused[node], {})[str(node.target)] = None
    return {
        "runtime": runtime,
        "macs": macs,
        "macs_by_zero": by_zero,
        "operators": dict(Counter(str(node.target) for node in computed)),
        "nodes": [node.name for node in computed],
        "why": {reason: list(operators) for reason, operators in why.items()},
    }
