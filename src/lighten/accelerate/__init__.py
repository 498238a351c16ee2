"""Accelerate: the fastest lossless version of a model on this machine."""

from lighten.accelerate.verb import accelerate, lossless_baseline
from lighten.verb import make_callable

__all__ = ["accelerate", "lossless_baseline"]

make_callable(__name__, accelerate)
