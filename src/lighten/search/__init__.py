"""Search: which plan meets the budget."""

from lighten.search.loop import Result, compress

__all__ = ["Result", "compress"]
