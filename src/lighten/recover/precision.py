"""What makes a training step faster: products in bfloat16, and convolutions laid out channels last."""

import contextlib
import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

ATTENTION = {
    torch.nn.functional.scaled_dot_product_attention,
    torch.ops.aten.scaled_dot_product_attention.default,
}
CONVOLUTIONS = {torch.nn.functional.conv2d, torch.ops.aten.conv2d.default}
AVERAGES = {
    torch.nn.functional.adaptive_avg_pool2d,
    torch.ops.aten.adaptive_avg_pool2d.default,
    torch.ops.aten.mean.dim,
}


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
    faster = Faster() if bfloat16 and device == "cpu" else contextlib.nullcontext()
    with torch.autocast(device, torch.bfloat16, enabled=bfloat16), faster:
        outputs = model(*args)
    return pytree.tree_map_only(Tensor, _in_float32, outputs) if bfloat16 else outputs


class Faster(TorchFunctionMode):
    """Within it, what CPUs differentiate slowly in bfloat16 is computed in another way, to the same values.

    In float32: attention, which returns float32; its backward pass takes 35 ms in bfloat16 and 4.7 in float32 (128
    samples of 50 tokens, 4 heads of 24, two cores of a Zen 4), which was more than all that the other products of a
    small ViT gain. Depthwise convolutions that stride: 53 and 6.5 ms both ways (128 samples, 48 channels of 28 × 28).
    With its gradient laid out channels last: what is averaged over all places. That gradient is one number at every
    place, which has no layout, and what comes before takes another than its own for it: batch norm and relu6 of 128
    samples, 640 channels of 7 × 7, 47 and 12 ms both ways.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """As torch calls it for every function and operator."""
        kwargs = kwargs or {}
        if func in AVERAGES and args and _is_channels_last(args[0]):
            return func(_KeptLayout.apply(args[0]), *args[1:], **kwargs)  # type: ignore[no-untyped-call]
        is_attention = func in ATTENTION
        if not is_attention and not (func in CONVOLUTIONS and _is_slow(*args, **kwargs)):
            return func(*args, **kwargs)
        args, kwargs = pytree.tree_map_only(Tensor, _in_float32, (args, kwargs))
        with torch.autocast("cpu", enabled=False):
            made = func(*args, **kwargs)
        return made if is_attention else made.bfloat16()  # what comes next reads less


class _KeptLayout(torch.autograd.Function):
    """x, channels last like its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0].contiguous(memory_format=torch.channels_last)


def _is_channels_last(x: Tensor) -> bool:
    return x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def _is_slow(x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, *more: Any, **named: Any) -> bool:
    strides = stride if isinstance(stride, Sequence) else (stride,)
    return weight.shape[1] == 1 < weight.shape[0] and any(step > 1 for step in strides)


def _in_float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor
