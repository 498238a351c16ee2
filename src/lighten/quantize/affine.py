"""Affine integers: from a range or a weight to scale, zero_point and codes.

Source: Nagel et al., "A White Paper on Neural Network Quantization", arXiv:2106.08295, sec. 2.
Differs: a range without width gets scale 1, and a scale is raised where the bias of its channel would overflow its
int32 code, or where its product with the input scale would underflow, so nothing becomes NaN or wraps around.
"""

import torch
from torch import Tensor

# A bias code uses at most 30 of its 31 bits: the other half of the range is left to the accumulated products.
MAX_BIAS_CODE = 2.0**30


def qparams_of_range(low: float, high: float, bits: int = 8) -> tuple[Tensor, Tensor]:
    """scale [] float32 > 0 and zero_point [] uint8, for codes 0..2^bits - 1 of values in [low, high], widened to 0.

    0.0 is exactly representable: padding and pruned weights stay zero.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    largest = 2**bits - 1
    scale = torch.tensor((high - low) / largest, dtype=torch.float32)
    if not scale > torch.finfo(torch.float32).tiny:
        scale = torch.ones(())
    zero_point = torch.tensor(-low / float(scale)).round().clamp(0, largest)
    return scale, zero_point.to(torch.uint8)


def symmetric_qparams(largest: float) -> tuple[Tensor, Tensor]:
    """scale [] float32 > 0 and zero_point [] int8, which is 0, for codes -127..127 of values in [-largest, largest]."""
    scale = torch.tensor(largest / 127, dtype=torch.float32)
    if not scale > torch.finfo(torch.float32).tiny:
        scale = torch.ones(())
    return scale, torch.zeros((), dtype=torch.int8)


def quantize_weight(
    weight: Tensor, bits: int, least_scale: Tensor | None = None, *, per_tensor: bool = False
) -> tuple[Tensor, Tensor]:
    """Symmetric codes of weight [out, …], one scale an output channel; rounds to nearest, ties to even.

    bits: 2..8; codes lie in ±(2^(bits-1) - 1). least_scale [out]: scales do not fall below it. per_tensor: all scales
    are the largest of them. Returns codes int8 of the weight's shape and scale [out] float32. A channel of zeros gets
    codes of zero.
    """
    largest = 2 ** (bits - 1) - 1
    scale = weight.detach().float().flatten(1).abs().amax(1) / largest
    if least_scale is not None:
        scale = scale.maximum(least_scale)
    if per_tensor:
        scale = scale.amax().expand_as(scale).clone()
    scale = torch.where(scale > torch.finfo(torch.float32).tiny, scale, 1.0)
    codes = (weight.detach().float() / scale.view(-1, *[1] * (weight.ndim - 1))).round().clamp(-largest, largest)
    return codes.to(torch.int8), scale


def least_weight_scale(bias: Tensor, input_scale: Tensor) -> Tensor:
    """[out] the smallest weight scales at which bias [out] fits its int32 code of step input_scale · weight scale.

    The step itself stays a normal float32. A scale is infinite where the bias dwarfs the input beyond float32.
    """
    largest = bias.detach().double().abs().clamp(min=MAX_BIAS_CODE * torch.finfo(torch.float32).tiny)
    return (largest / (input_scale.double() * MAX_BIAS_CODE)).float()


def quantize_bias(bias: Tensor, scale: Tensor) -> Tensor:
    """int32 codes of bias [out] at scale [out] = input scale · weight scale, as integer kernels add it."""
    return (bias.detach().double() / scale.double()).round().to(torch.int32)
