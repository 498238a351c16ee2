"""AWQ: enlarge the weights that meet large inputs before rounding, and shrink those inputs by as much.

Source: Lin et al., "AWQ: Activation-aware Weight Quantization", arXiv:2306.00978, sec. 3.2: the factor of an input
channel is its mean magnitude to the power alpha, and alpha is searched.
Differs: the output error is computed from second moments, for every row and sample seen, instead of on a sample. The
factors stay with the layer (`input_scale`): see lighten.quantize.rescale for where inputs are divided by them.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from lighten.errors import ConfigError
from lighten.quantize.formats.grid import Format, QuantizedWeight
from lighten.quantize.methods.config import MethodConfig
from lighten.quantize.methods.rtn import RTNConfig, rtn
from lighten.quantize.moments import Moments, output_errors
from lighten.registry import quantizer

LEAST = 1e-4  # of the largest mean magnitude: an input that hardly ever is may not enlarge others beyond measure


@dataclass(frozen=True, kw_only=True)
class AWQConfig(MethodConfig):
    """candidates: values of alpha tried, from 0 (round to nearest) to below 1."""

    needs_inputs: ClassVar[bool] = True
    scales_inputs: ClassVar[bool] = True
    candidates: int = 20

    def __post_init__(self) -> None:
        if self.candidates < 2:
            raise ConfigError(f"candidates={self.candidates} is below 2, and the first is rtn. The default is 20.")


@quantizer("awq", AWQConfig)
def awq(weight: Tensor, form: Format, group_size: int | None, config: AWQConfig, moments: Moments) -> QuantizedWeight:
    """weight [rows, columns], of one part; the result's input_scale [columns] is a power of mean_abs.

    It is there even where it is all ones: what a network consists of may not hang on its weights, or a checkpoint could
    not be restored.
    """
    (size,) = moments.mean_abs.clamp(min=LEAST * float(moments.mean_abs.max()))
    best: QuantizedWeight | None = None
    least = torch.inf
    for i in range(config.candidates):
        factors = size ** (i / config.candidates)
        factors = factors / (factors.max() * factors.min()).sqrt() if i and factors.min() > 0 else torch.ones_like(size)
        factors = factors.to(weight.dtype)  # as they will be stored
        q = rtn(weight * factors, form, group_size, RTNConfig())
        q = replace(q, input_scale=factors.float())
        error = float(output_errors(weight, q, moments.hessian).sum())
        if error < least:
            best, least = q, error
    assert best is not None, "an error of finite numbers is finite"
    return best
