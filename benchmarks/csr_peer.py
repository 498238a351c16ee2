"""Torch's sparse CSR matrices as a contender of sparse.py, which runs this in a process of its own.

It reads an artifact of the runtime `torch` and gives the layers that torch can compute by CSR to it: linear layers, and
convolutions of one group over an image that F.unfold writes out (im2col). Grouped and one-dimensional convolutions and
layers of fewer than half zeros stay dense.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from lighten.graph.arguments import arguments
from lighten.runtime.torch_graph import load_graph
from lighten.runtime.worker import serve

aten = torch.ops.aten
LAYERS = (aten.linear.default, aten.conv2d.default, aten.conv1d.default)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    y = (weight @ x.flatten(0, -2).T).T.unflatten(0, x.shape[:-1])
    return y if bias is None else y + bias


def convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, size: tuple[int, int], window: dict[str, Any]
) -> Tensor:
    """weight: [out, in · kernel]. size: of the output."""
    columns = x.flatten(2) if not window else F.unfold(x, **window)  # [n, in · kernel, places]
    y = (weight @ columns.transpose(0, 1).flatten(1)).unflatten(1, (len(x), -1)).transpose(0, 1)
    y = y.unflatten(2, size)
    return y if bias is None else y + bias[:, None, None]


def use_csr_(module: fx.GraphModule, inputs: list[Tensor]) -> tuple[list[str], list[str]]:
    """Replace what CSR can do in module; the names of the layers that are sparse now, and of those that are not."""
    sizes: dict[fx.Node, torch.Size] = {}

    class Watch(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if isinstance(value, Tensor):
                sizes[n] = value.shape
            return value

    with torch.no_grad():
        Watch(module).run(*inputs)
    sparse, dense = [], []
    for node in list(module.graph.nodes):
        if node.target not in LAYERS:
            continue
        given = arguments(node)
        weight = getattr(module, str(given["weight"].target), None)
        is_image = node.target is aten.conv2d.default and given["groups"] == 1
        is_sparse = isinstance(weight, Tensor) and (weight == 0).float().mean() >= 0.5
        if not is_sparse or not (is_image or node.target is aten.linear.default):
            dense.append(node.name)
            continue
        sparse.append(node.name)
        name = f"csr_{len(sparse)}"
        module.register_buffer(name, weight.flatten(1).to_sparse_csr())
        with module.graph.inserting_before(node):
            csr = module.graph.get_attr(name)
            if is_image:
                window = {key: given[key] for key in ("stride", "padding", "dilation")} | {
                    "kernel_size": weight.shape[2:]
                }
                is_point = weight.shape[2:] == (1, 1) and set(given["stride"]) == {1} and not any(given["padding"])
                args = (node.args[0], csr, given["bias"], tuple(sizes[node][2:]), {} if is_point else window)
                new = module.graph.call_function(convolution, args)
            else:
                new = module.graph.call_function(linear, (node.args[0], csr, given["bias"]))
        node.replace_all_uses_with(new)
        module.graph.erase_node(node)
    module.recompile()
    return sparse, dense


def load(job: dict[str, Any]) -> tuple[Callable[[], Any], dict[str, Any]]:
    from safetensors.torch import load_file, save_file

    started = time.perf_counter()
    torch.set_num_threads(job["threads"])
    inputs = [x for _, x in sorted(load_file(job["inputs"]).items())]
    module = load_graph(Path(job["artifact"]))
    use_csr_(module, inputs)
    loaded = time.perf_counter()

    def call() -> Any:
        with torch.inference_mode():
            return module(*inputs)

    save_file({f"#{i}": output.contiguous() for i, output in enumerate(call())}, job["outputs"])
    first_call_ms = (time.perf_counter() - loaded) * 1e3
    times = {"import_ms": 0.0, "load_ms": (loaded - started) * 1e3, "first_call_ms": first_call_ms}
    return call, {**times, "runtime": "torch-csr"}


if __name__ == "__main__":
    serve(load)
