"""Quantization: number formats, ranges, placement, and the rewriting of a graph."""

from lighten.quantize.verb import quantize
from lighten.verb import make_callable

__all__ = ["quantize"]

make_callable(__name__, quantize)
