"""Methods for single weights, one file each; importing this package enters them into the registries."""

from lighten.prune.methods import kernel, lamp, magnitude, obd, obs, random, sparsegpt, wanda

__all__ = ["kernel", "lamp", "magnitude", "obd", "obs", "random", "sparsegpt", "wanda"]
