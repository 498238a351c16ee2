"""Round-to-nearest (RTN): the baseline that every other method has to beat.

Source: Nagel et al., "A White Paper on Neural Network Quantization", arXiv:2106.08295, sec. 2.
"""

from dataclasses import dataclass

from torch import Tensor

from lighten.quantize.formats.grid import Format, Grid, QuantizedWeight, by_groups
from lighten.quantize.methods.config import MethodConfig
from lighten.quantize.moments import Moments
from lighten.registry import quantizer


@dataclass(frozen=True, kw_only=True)
class RTNConfig(MethodConfig):
    """No settings."""


@quantizer("rtn", RTNConfig)
def rtn(
    weight: Tensor, form: Format, group_size: int | None, config: RTNConfig, moments: Moments | None = None
) -> QuantizedWeight:
    """Every group of weight [rows, columns] on the grid that spans it; each value goes to the nearest of the grid."""
    form = form.bound_to(weight)

    def work(groups: Tensor) -> tuple[Grid, Tensor]:
        grid = form.fit(groups)
        return grid, form.encode(groups, grid)

    return by_groups(weight, form, group_size, work)
