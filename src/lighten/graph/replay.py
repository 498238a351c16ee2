"""Replay: what a graph computes with other values for some of its tensors, sharing all that does not depend on them.

One pass keeps every intermediate value of one batch; each change then costs what comes after it in the graph. Memory
is that of the values of one batch.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from lighten.graph.capture import CapturedModule, placeholder_values
from lighten.graph.ids import tensors_in


class Replay:
    """captured on one batch, ready to be run again with changes.

    Raises:
        ValueError: the batch has more inputs, or fewer, than the model takes. Whatever an operator raises on a batch
        that does not fit.
    """

    def __init__(self, captured: CapturedModule, inputs: tuple[Any, ...]) -> None:
        values = placeholder_values(captured, inputs)
        self._kept = fx.Interpreter(captured, garbage_collect_values=False)
        self._kept.extra_traceback = False
        self._nodes = list(captured.graph.nodes)
        with torch.no_grad():
            self._kept.run(*values, enable_io_processing=False)

    def outputs(self, changed: Mapping[str, Tensor] | None = None) -> list[Tensor]:
        """The floating outputs, in order, with these values in place of the parameters and buffers of those names."""
        changed = changed or {}
        fresh: dict[fx.Node, Any] = {
            node: changed[str(node.target)] for node in self._nodes if node.op == "get_attr" and node.target in changed
        }

        def value(node: fx.Node) -> Any:
            return fresh[node] if node in fresh else self._kept.env[node]

        with torch.no_grad():
            for node in self._nodes:
                if node not in fresh and any(read in fresh for read in node.all_input_nodes):
                    fresh[node] = self._run(node, value)
        return [out for out in tensors_in(value(self._nodes[-1])) if out.is_floating_point()]

    def _run(self, node: fx.Node, value: Callable[[fx.Node], Any]) -> Any:
        args, kwargs = fx.map_arg(node.args, value), fx.map_arg(node.kwargs, value)
        if node.op == "output":
            return args[0]
        return getattr(self._kept, node.op)(node.target, args, kwargs)
