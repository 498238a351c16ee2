"""The PyTorch backend: an ATen graph as data, run as it is or through torch.compile.

Options: mode = "eager" | "compile" (Inductor; needs a C++ compiler where it is loaded, and compiles at the first call),
layout = "contiguous" | "channels_last" for images.
"""

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from lighten.errors import ArtifactError
from lighten.runtime.artifact import Artifact
from lighten.runtime.backends import Compiled, Description, only_options
from lighten.runtime.spec import Array
from lighten.runtime.torch_graph import load_graph

MODES = ("eager", "compile")
LAYOUTS = ("contiguous", "channels_last")


def compile(artifact: Artifact, threads: int) -> Compiled:
    """Load the graph. PyTorch has one thread setting a process: it is switched for each call, and put back.

    Raises:
        ArtifactError: an unknown mode or layout, or the files hold no graph for these inputs and outputs.
    """
    options = only_options(artifact, {"mode": str, "layout": str})
    mode = _one_of(artifact, options, "mode", MODES)
    channels_last = _one_of(artifact, options, "layout", LAYOUTS) == "channels_last"
    module: Any = load_graph(artifact.path, channels_last=channels_last)
    n_inputs = sum(node.op == "placeholder" for node in module.graph.nodes)
    n_outputs = len(module.graph.output_node().args[0])
    if (n_inputs, n_outputs) != (len(artifact.inputs), len(artifact.outputs)):
        raise ArtifactError(
            f"The graph in '{artifact.path}' has {n_inputs} inputs and {n_outputs} outputs, but the manifest lists "
            f"{len(artifact.inputs)} and {len(artifact.outputs)}."
        )
    weights = {weight.untyped_storage().data_ptr() for weight in module.buffers()}
    call = torch.compile(module, options={"freezing": True}) if mode == "compile" else module
    # Compilation happens inside calls, whenever a shape is new; one caller at a time makes that safe.
    turn = threading.Lock() if mode == "compile" else contextlib.nullcontext()

    def run(arrays: Sequence[Array]) -> list[Array]:
        inputs = [torch.from_numpy(array if array.flags.writeable else array.copy()) for array in arrays]
        if channels_last:
            inputs = [x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x for x in inputs]
        with turn, _threads(threads), torch.inference_mode():
            outputs = call(*inputs)
        lent = weights | {x.untyped_storage().data_ptr() for x in inputs}
        return [_own(output, lent) for output in outputs]

    return run


def describe() -> Description:
    """Version and devices."""
    devices = ("CPU", *(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())))
    return Description("torch", torch.__version__, devices)


@contextlib.contextmanager
def _threads(n: int) -> Iterator[None]:
    before = torch.get_num_threads()
    if before == n:
        yield
        return
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _own(output: torch.Tensor, lent: set[int]) -> Array:
    """As an array of its own: a view of a weight or of an input would let a caller change them."""
    output = output.contiguous()
    return (output.clone() if output.untyped_storage().data_ptr() in lent else output).numpy()


def _one_of(artifact: Artifact, options: dict[str, Any], key: str, known: tuple[str, ...]) -> str:
    value: str = options.get(key, known[0])
    if value not in known:
        raise ArtifactError(f"'{artifact.path}' has {key}={value!r}. Known: {', '.join(known)}.")
    return value
