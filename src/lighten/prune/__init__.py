"""Pruning: which parts of a network can go, and taking them out."""

from lighten.prune.verb import prune
from lighten.verb import make_callable

__all__ = ["prune"]

make_callable(__name__, prune)
