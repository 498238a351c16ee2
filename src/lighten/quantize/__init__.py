"""Quantization: number formats, ranges, placement, and the rewriting of a graph."""

from lighten.quantize.static import quantize

__all__ = ["quantize"]
