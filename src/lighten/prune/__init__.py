"""Pruning: which parts of a network can go, and taking them out."""

from lighten.prune.channels import prune

__all__ = ["prune"]
