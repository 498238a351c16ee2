"""Methods for single weights, one file each; importing this package enters them into the registries."""

from lighten.prune.methods import lamp, magnitude, obd, obs, random, sparsegpt, wanda

__all__ = ["lamp", "magnitude", "obd", "obs", "random", "sparsegpt", "wanda"]
