"""Importance criteria, one file each; importing this package enters them into the registries."""

# The plain ones first: this is the order in which an error lists what there is.
from lighten.prune.importance import l1, l2, random

# isort: split
from lighten.prune.importance import activation, bn_scale, fpgm, hessian, kernel, obs, taylor

__all__ = ["activation", "bn_scale", "fpgm", "hessian", "kernel", "l1", "l2", "obs", "random", "taylor"]
