"""Importance criteria, one file each; importing this package enters them into the registry."""

from lighten.prune.importance import l1, l2, random

__all__ = ["l1", "l2", "random"]
