"""All the numbers of a module by name: what is kept of an epoch, averaged and stored."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lighten.prune.masks import MaskedModule


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, each once; changing one changes the model."""
    return {name: tensor.detach() for name, tensor in (*model.named_parameters(), *model.named_buffers())}


def copied(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters and buffers by name."""
    return {name: tensor.clone() for name, tensor in named_tensors(model).items()}


def copy_into_(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Overwrite the parameters and buffers of these names; what masks prune is zero afterwards."""
    with torch.no_grad():
        for name, tensor in named_tensors(model).items():
            if name in tensors:
                tensor.copy_(tensors[name])
    if isinstance(model, MaskedModule):
        model.hold_()
