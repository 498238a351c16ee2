"""What single layers make of a batch, in any module: a plain one by hooks, a captured one by its graph.

A layer is named by its module path in the original model. What it makes is, in a graph, the last value with that path
or one below it that is read from elsewhere.
"""

from typing import Any

from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from lighten.errors import ConfigError
from lighten.graph.capture import CapturedModule, layer_of, placeholder_values
from lighten.prune.masks import MaskedModule


class Observed(nn.Module):
    """model, called like it, that returns its outputs and, by name, the tensor that each of layers made.

    Raises:
        ConfigError: model has no layer of that name, or it made no tensor in a call.
    """

    def __init__(self, model: nn.Module, layers: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.model, self.layers = model, layers
        for name in layers:
            if not can_be_observed(model, name):
                raise ConfigError(
                    f"features name '{name}', which {type(model).__name__} does not run as a layer. Name modules that "
                    "are called in both models, or leave features out."
                )

    def forward(self, *args: Any) -> tuple[Any, dict[str, Tensor]]:
        """See the class."""
        if not self.layers:
            return self.model(*args), {}
        if isinstance(self.model, CapturedModule):
            outputs, made = _from_graph(self.model, self.layers, args)
        else:
            outputs, made = _from_hooks(self.model, self.layers, args)
        return outputs, {name: _tensor_of(name, made.get(name)) for name in self.layers}


def can_be_observed(model: nn.Module, name: str) -> bool:
    """Whether model runs a layer of that name."""
    if isinstance(model, CapturedModule):
        return _end_of(model, name) is not None
    found = dict(model.named_modules()).get(name)
    return found is not None and not isinstance(found, (nn.ModuleList, nn.ModuleDict))


def stages(model: nn.Module, prefix: str = "") -> list[str]:
    """The names of the parts that model is made of: children with several layers, else all layers but the last."""
    children = {f"{prefix}{name}": child for name, child in model.named_children() if _n_layers(child)}
    large = {name: child for name, child in children.items() if _n_layers(child) > 1}
    if len(large) == 1:
        [(name, child)] = large.items()
        return stages(child, f"{name}.")
    return list(large) or list(children)[:-1]


def _n_layers(module: nn.Module) -> int:
    return sum(any(True for _ in part.parameters(recurse=False)) for part in module.modules())


def _inside(path: str, layer: str) -> bool:
    return path == layer or path.startswith(f"{layer}.")


def _end_of(captured: CapturedModule, layer: str) -> fx.Node | None:
    ends = [
        node
        for node in captured.graph.nodes
        if node.op == "call_function"
        and _inside(layer_of(node), layer)
        and any(not _inside(layer_of(user), layer) for user in node.users)
    ]
    return ends[-1] if ends else None


class _Watch(fx.Interpreter):
    """Runs the graph and keeps what some nodes make."""

    def __init__(self, captured: CapturedModule, wanted: dict[fx.Node | None, str]) -> None:
        super().__init__(captured)
        self.extra_traceback = False
        self.wanted = wanted
        self.made: dict[str, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n in self.wanted:
            self.made[self.wanted[n]] = value
        return value


def _from_graph(captured: CapturedModule, layers: tuple[str, ...], args: tuple[Any, ...]) -> tuple[Any, dict[str, Any]]:
    if isinstance(captured, MaskedModule):
        captured.hold_()
    watch = _Watch(captured, {_end_of(captured, name): name for name in layers})
    outputs = watch.run(*placeholder_values(captured, args), enable_io_processing=False)
    return captured.graph.process_outputs(outputs), watch.made


def _from_hooks(model: nn.Module, layers: tuple[str, ...], args: tuple[Any, ...]) -> tuple[Any, dict[str, Any]]:
    made: dict[str, Any] = {}

    def keep(name: str) -> Any:
        return lambda module, inputs, output: made.__setitem__(name, output)

    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in layers]
    try:
        return model(*args), made
    finally:
        for handle in handles:
            handle.remove()


def _tensor_of(name: str, value: Any) -> Tensor:
    """A layer may return a tuple, as recurrent ones do: the first tensor is what it made."""
    tensors = [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]
    if not tensors:
        raise ConfigError(f"features name '{name}', which made no tensor for this batch. Name layers that always run.")
    return tensors[0]
