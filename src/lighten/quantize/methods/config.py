"""What the engine has to know of a rounding method before it runs."""

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """needs_inputs: the method reads moments, so calibration data is needed. integers_only: codes must be evenly
    spaced. scales_inputs: results have an input_scale, which only a linear layer with a weight of its own can bear."""

    needs_inputs: ClassVar[bool] = False
    integers_only: ClassVar[bool] = False
    scales_inputs: ClassVar[bool] = False
