"""Methods for single weights, one file each; importing this package enters them into the registries."""

from lighten.prune.methods import magnitude, random

__all__ = ["magnitude", "random"]
