"""Standardized: normalize the weights, round them to integers, scale back. Both readings of its formula.

Source: the text this project starts from: (1) standardize the weights to zero mean and unit variance, (2) round to
integers of b bits, (3) scale back to the original range; `Xq = round((X_norm · scale + bias) / 2^b)`.

Read literally, step 2 divides by 2^b what scale and bias have not first spread over 2^b codes: at scale 1 and bias 0 a
standardized weight, |x| < 4, becomes round(x / 256) = 0 at 8 bits. Everything collapses to a handful of codes, and
fewer the more bits there are; see `literal_codes`. Read as meant, the quotient is the *range* over 2^b codes: an affine
quantizer whose range is mean ± k·std, which clips what lies beyond. That is the method registered here.
Differs: the range is cut where there are no weights, and widened to 0, which stays exact.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lighten.errors import ConfigError
from lighten.quantize.formats.grid import Format, Grid, QuantizedWeight
from lighten.quantize.formats.integer import IntegerFormat, round_on_grids
from lighten.quantize.methods.config import MethodConfig
from lighten.quantize.moments import Moments
from lighten.registry import quantizer


@dataclass(frozen=True, kw_only=True)
class StandardizedConfig(MethodConfig):
    """k: standard deviations from the mean to the ends of the range."""

    integers_only: ClassVar[bool] = True
    k: float = 3.0

    def __post_init__(self) -> None:
        if not self.k > 0:
            raise ConfigError(f"k={self.k} is not above 0. The default is 3.")


@quantizer("standardized", StandardizedConfig)
def standardized(
    weight: Tensor, form: Format, group_size: int | None, config: StandardizedConfig, moments: Moments | None = None
) -> QuantizedWeight:
    """weight [rows, columns], each group by its own mean and standard deviation."""
    return round_on_grids(weight, form, group_size, lambda groups, integer: around_mean(groups, integer, config.k))


def around_mean(groups: Tensor, form: IntegerFormat, k: float) -> Grid:
    """The grid of each of groups [n, size] float32 that reaches k standard deviations from the mean."""
    mean = groups.mean(-1, keepdim=True)
    # A deviation that is mere rounding noise of equal weights would clip the very value they share.
    reach = k * groups.std(-1, correction=0, keepdim=True)
    low = torch.maximum(mean - reach, groups.amin(-1, keepdim=True))
    high = torch.minimum(mean + reach, groups.amax(-1, keepdim=True))
    return form.grid_of_range(torch.minimum(low, mean), torch.maximum(high, mean))


def literal_codes(weight: Tensor, bits: int, scale: float = 1.0, bias: float = 0.0) -> Tensor:
    """round((X_norm · scale + bias) / 2^b), term by term; the method that is not meant. Any shape."""
    deviation = weight.std(correction=0)
    normal = (weight - weight.mean()) / torch.where(deviation > 0, deviation, 1.0)
    codes: Tensor = ((normal * scale + bias) / 2**bits).round()
    return codes
