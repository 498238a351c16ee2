"""An exported ATen graph as data: ``graph.json`` says which operator takes what, ``weights.safetensors`` holds tensors.

Nothing in these files is code: an operator is a name, and torch_ops.py says which names there are. Names of nodes are
not stored: the graph is rebuilt with fresh ones, because torch.fx turns them into source text.

A value is JSON as it stands where it is None, a bool, a number, a string or a list; anything else is an object of one
key that says what it is: {"node": 3}, {"dtype": "float32"}, {"slice": [0, null, 1]}, ….
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from lighten.errors import ArtifactError, CaptureError
from lighten.runtime.torch_ops import NAME_OF_FUNCTION, resolve

GRAPH = "graph.json"
WEIGHTS = "weights.safetensors"
VERSION = 1
MAX_GRAPH_BYTES = 64 * 2**20  # as JSON, before it is parsed; the graphs of the largest models are a few megabytes

_CONSTANTS: dict[str, tuple[type, tuple[str, ...]]] = {
    "dtype": (
        torch.dtype,
        (
            *("float16", "bfloat16", "float32", "float64", "bool", "complex64"),
            *("int8", "int16", "int32", "int64", "uint8"),
        ),
    ),
    "layout": (torch.layout, ("strided",)),
    "memory_format": (
        torch.memory_format,
        ("contiguous_format", "channels_last", "channels_last_3d", "preserve_format"),
    ),
}


def save_graph(module: fx.GraphModule, folder: Path) -> None:
    """Write module into folder. Its nodes are placeholders, get_attr of tensors, ATen operators, and one output.

    Weights that share memory are stored once where they are one and the same tensor.

    Raises:
        CaptureError: a node that is none of these; the message names it.
    """
    weights: dict[str, Tensor] = {}
    stored: dict[tuple[Any, ...], str] = {}
    numbers: dict[fx.Node, int] = {}
    nodes: list[dict[str, Any]] = []
    outputs: list[Any] = []
    for node in module.graph.nodes:
        if node.op == "output":
            outputs = [_encode(value, numbers, node) for value in pytree.tree_leaves(node.args[0])]
            continue
        if node.op == "placeholder":
            entry: dict[str, Any] = {"op": "input"}
        elif not node.users and not _writes(node):
            continue  # an assertion, torch.export's check of sizes, or a result that nobody takes
        elif node.op == "get_attr":
            entry = {"op": "weight", "name": _store(_tensor_at(module, node), weights, stored)}
        elif node.op == "call_function":
            entry = {
                "op": _name_of(node),
                "args": [_encode(value, numbers, node) for value in node.args],
                "kwargs": {key: _encode(value, numbers, node) for key, value in node.kwargs.items()},
            }
        else:
            raise CaptureError(f"Cannot write node '{node.name}': it is a {node.op}. Export the module to ATen first.")
        numbers[node] = len(nodes)
        nodes.append(entry)
    save_file(weights, folder / WEIGHTS)
    data = {"version": VERSION, "nodes": nodes, "outputs": outputs}
    (folder / GRAPH).write_text(json.dumps(data, allow_nan=False), encoding="utf-8")


def load_graph(folder: Path, *, channels_last: bool = False) -> fx.GraphModule:
    """Rebuild what save_graph wrote; its output is a list. Weights are buffers, so nothing in it trains.

    channels_last: keep 4-d weights in that memory layout, and turn views into reshapes, which bear it.

    Raises:
        ArtifactError: the files are not such a graph, or name an operator that is not allowed or that this PyTorch
        does not have.
    """
    try:
        with (folder / GRAPH).open("rb") as file:
            raw = file.read(MAX_GRAPH_BYTES + 1)
        if len(raw) > MAX_GRAPH_BYTES:
            raise ValueError(f"it is larger than {MAX_GRAPH_BYTES} bytes")
        data = json.loads(raw)
        weights = load_file(folder / WEIGHTS)
        if data["version"] != VERSION:
            raise ArtifactError(f"'{folder / GRAPH}' has version {data['version']!r}; this lighten reads {VERSION}.")
        return _rebuild(data, weights, channels_last)
    except (
        OSError,
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        AttributeError,
        RuntimeError,
        SafetensorError,
    ) as error:
        raise ArtifactError(
            f"'{folder / GRAPH}' is not a graph that lighten wrote: {type(error).__name__}: {error}. Export again."
        ) from error


def _rebuild(data: dict[str, Any], weights: dict[str, Tensor], channels_last: bool) -> fx.GraphModule:
    root = nn.Module()
    attributes: dict[str, str] = {}
    for i, (name, weight) in enumerate(sorted(weights.items())):
        attributes[name] = f"w{i}"
        is_image = channels_last and weight.ndim == 4
        root.register_buffer(f"w{i}", weight.contiguous(memory_format=torch.channels_last) if is_image else weight)
    graph = fx.Graph()
    nodes: list[fx.Node] = []
    for i, entry in enumerate(data["nodes"]):
        if entry["op"] == "input":
            nodes.append(graph.placeholder(f"x{i}"))
        elif entry["op"] == "weight":
            nodes.append(graph.get_attr(attributes[entry["name"]]))
        else:
            name = entry["op"]
            if channels_last and name == "aten.view.default":
                name = "aten.reshape.default"
            args = tuple(_decode(value, nodes) for value in entry["args"])
            kwargs = {str(key): _decode(value, nodes) for key, value in entry["kwargs"].items()}
            if not all(key.isidentifier() for key in kwargs):
                raise ValueError(f"an argument is named {sorted(kwargs)}")
            nodes.append(graph.call_function(resolve(name), args, kwargs))
    graph.output([_decode(value, nodes) for value in data["outputs"]])
    graph.lint()
    return fx.GraphModule(root, graph)


def _writes(node: fx.Node) -> bool:
    """Whether node changes its arguments, which counts even where nobody takes its result."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _name_of(node: fx.Node) -> str:
    if node.target in NAME_OF_FUNCTION:
        return f"operator.{NAME_OF_FUNCTION[node.target]}"
    if isinstance(node.target, torch._ops.OpOverload):
        name = str(node.target)
        try:
            if resolve(name) is node.target:
                return name
        except ValueError as error:
            raise CaptureError(f"Cannot write node '{node.name}': {error}. Export to onnxruntime instead.") from error
    raise CaptureError(
        f"Cannot write node '{node.name}': '{node.target}' is not an ATen operator. Export to onnxruntime instead."
    )


def _tensor_at(module: nn.Module, node: fx.Node) -> Tensor:
    value: Any = module
    for part in str(node.target).split("."):
        value = getattr(value, part)
    if not isinstance(value, Tensor):
        raise CaptureError(f"Cannot write node '{node.name}': '{node.target}' is a {type(value).__name__}, no tensor.")
    return value.detach()


def _store(tensor: Tensor, weights: dict[str, Tensor], stored: dict[tuple[Any, ...], str]) -> str:
    key = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()) if tensor.numel() else (id(tensor),)
    if key not in stored:
        stored[key] = f"w{len(weights)}"
        weights[stored[key]] = tensor.cpu().clone(memory_format=torch.contiguous_format)
    return stored[key]


def _encode(value: Any, numbers: dict[fx.Node, int], node: fx.Node) -> Any:
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, fx.Node):
        return {"node": numbers[value]}
    if isinstance(value, (list, tuple)):
        return [_encode(item, numbers, node) for item in value]
    if isinstance(value, slice):
        return {"slice": [_encode(item, numbers, node) for item in (value.start, value.stop, value.step)]}
    if isinstance(value, torch.device):
        if value.type == "cpu":
            return {"device": "cpu"}
        raise CaptureError(
            f"Cannot write node '{node.name}': it is placed on '{value}'. Move the model to the CPU first."
        )
    for key, (kind, names) in _CONSTANTS.items():
        if isinstance(value, kind) and (name := str(value).removeprefix("torch.")) in names:
            return {key: name}
    raise CaptureError(f"Cannot write node '{node.name}': its argument {value!r} is not plain data.")


def _decode(value: Any, nodes: list[fx.Node]) -> Any:
    if isinstance(value, list):
        return [_decode(item, nodes) for item in value]
    if not isinstance(value, dict):
        return value
    ((key, content),) = value.items()
    if key == "node":
        if type(content) is not int or not 0 <= content < len(nodes):
            raise ValueError(f"node {content!r} is used before it is there")
        return nodes[content]
    if key == "slice":
        return slice(*(_decode(item, nodes) for item in content))
    if key == "float" and content in ("inf", "-inf", "nan"):
        return float(content)
    if key == "device" and content == "cpu":
        return torch.device("cpu")
    if key in _CONSTANTS and content in _CONSTANTS[key][1]:
        return getattr(torch, content)
    raise ValueError(f"{value!r} is not a value")
