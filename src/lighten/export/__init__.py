"""Export: lowering a module to a runtime's file format, and writing it as an artifact."""

from lighten.export.verb import export

__all__ = ["export"]
