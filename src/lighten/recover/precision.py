"""What makes a training step faster: products in bfloat16, and convolutions laid out channels last."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree


def bfloat16_pays(model: nn.Module) -> bool:
    """Whether the device that holds model multiplies bfloat16 matrices in hardware."""
    device = next(iter(model.parameters()), torch.empty(0)).device.type
    if device == "cpu":
        return bool(torch.cpu.get_capabilities().get("avx512_bf16", False))
    return device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def takes_channels_last(model: nn.Module, inputs: tuple[Any, ...]) -> bool:
    """Whether model has two-dimensional convolutions and computes what it did when they are laid out channels last.

    A `view` of what a convolution made, for one, cannot be taken in that layout; parameters with five axes have none.
    """
    if not any(parameter.ndim == 4 for parameter in model.parameters()):
        return False
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        wanted = model(*inputs)
        try:
            to_layout_(model, torch.channels_last)
            found = model(*inputs)
        except RuntimeError:
            return False
    pairs = zip(pytree.tree_leaves(wanted), pytree.tree_leaves(found), strict=True)
    return all(torch.allclose(a, b, rtol=1e-3, atol=1e-3) for a, b in pairs if isinstance(a, Tensor))


def to_layout_(model: nn.Module, layout: torch.memory_format) -> None:
    """Lay out the parameters and buffers of model in this memory format, in place."""
    model.to(memory_format=layout)  # type: ignore[call-overload]


def computed(model: nn.Module, args: tuple[Any, ...], bfloat16: bool) -> Any:
    """The outputs of model, its matrix products in bfloat16 where asked; the outputs are float32 in either case.

    Losses are sums and logarithms, which bfloat16 is too coarse for.
    """
    device = next(model.parameters()).device.type
    with torch.autocast(device, torch.bfloat16, enabled=bfloat16):
        outputs = model(*args)
    return pytree.tree_map_only(Tensor, _in_float32, outputs) if bfloat16 else outputs


def _in_float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor
