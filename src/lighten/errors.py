"""Every error that lighten raises on purpose, drawn as a tree.

    LightenError
    ├── ConfigError        a setting is outside what it may be
    ├── TaskError          a task file, its data or its metric is wrong
    ├── CaptureError       a model cannot be traced, rewritten or exported
    ├── ArtifactError      an output folder cannot be written, or an artifact is not what its manifest says
    └── MissingExtraError  a package of an optional extra is not installed

A message says what failed (with the numbers), why, and what to do. The command line prints it as one line and exits
with 1; anything else that escapes is a bug of ours and keeps its traceback.
"""

import importlib
from types import ModuleType


class LightenError(Exception):
    """The root of the tree; catch this to catch them all."""


class ConfigError(LightenError):
    """A setting is outside what it may be."""


class TaskError(LightenError):
    """A task file, its data or its metric is wrong."""


class CaptureError(LightenError):
    """A model cannot be traced, rewritten or exported."""


class ArtifactError(LightenError):
    """An output folder cannot be written, or an artifact is not what its manifest says."""


class MissingExtraError(LightenError):
    """A package of an optional extra is not installed."""


def require(module: str, extra: str) -> ModuleType:
    """Import an optional dependency, or say which extra installs it.

    Raises:
        MissingExtraError: the module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"{error.name} is not installed. It comes with an extra: pip install 'lighten[{extra}]'."
        ) from error
