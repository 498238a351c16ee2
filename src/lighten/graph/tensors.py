"""Parameters and buffers by their dotted names, of which a tied weight has several."""

from collections.abc import Iterator

from torch import Tensor, fx, nn


def get_tensor(module: nn.Module, name: str) -> Tensor:
    """The parameter or buffer of that dotted name."""
    owner, _, leaf = name.rpartition(".")
    value = getattr(module.get_submodule(owner), leaf)
    assert isinstance(value, Tensor)
    return value


def set_tensor_(module: nn.Module, name: str, value: Tensor) -> None:
    """Replace the parameter or buffer of that dotted name by value, under every name it has; a parameter stays one."""
    old, value = get_tensor(module, name), value.detach().clone()
    new = nn.Parameter(value, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else value
    for alias in _names_of(module, old) or [name]:
        owner_name, _, leaf = alias.rpartition(".")
        owner = module.get_submodule(owner_name)
        if isinstance(new, nn.Parameter):
            setattr(owner, leaf, new)
        else:
            owner.register_buffer(leaf, new, persistent=leaf not in owner._non_persistent_buffers_set)


def canonical_names(module: fx.GraphModule) -> dict[str, str]:
    """For each name of a parameter or buffer the one that the graph reads it by: tied weights have several names."""
    read = {node.target for node in module.graph.nodes if node.op == "get_attr"}
    tensors = sorted(_all_tensors(module), key=lambda item: item[0] not in read)
    first: dict[int, str] = {}
    for name, tensor in tensors:
        first.setdefault(id(tensor), name)
    return {name: first[id(tensor)] for name, tensor in tensors}


def _all_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def _names_of(module: nn.Module, tensor: Tensor) -> list[str]:
    return [name for name, other in _all_tensors(module) if other is tensor]
