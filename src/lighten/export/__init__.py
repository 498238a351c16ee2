"""Export: lowering a module to a runtime's file format, and writing it as an artifact."""

from lighten.export.verb import export
from lighten.verb import make_callable

__all__ = ["export"]

make_callable(__name__, export)
