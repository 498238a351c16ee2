"""Importance criteria, one file each; importing this package enters them into the registry."""

# The plain ones first: this is the order in which an error lists what there is.
from lighten.prune.importance import l1, l2, random

# isort: split
from lighten.prune.importance import kernel

__all__ = ["kernel", "l1", "l2", "random"]
