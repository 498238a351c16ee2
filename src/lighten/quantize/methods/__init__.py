"""Rounding methods, one file each; importing this package enters them into the registry.

A method is a function (weight [rows, columns], format, group_size, config, moments) -> QuantizedWeight. moments says
what calibration saw of the layer's inputs; only methods whose config says `needs_inputs` read it.
"""

from lighten.quantize.methods import adaround, awq, gptq, hqq, mse, rtn, signround, standardized
from lighten.quantize.methods.config import MethodConfig

__all__ = ["MethodConfig", "adaround", "awq", "gptq", "hqq", "mse", "rtn", "signround", "standardized"]
