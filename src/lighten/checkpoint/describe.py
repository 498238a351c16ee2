"""Example inputs as JSON and back: shapes, dtypes and nesting, without the data."""

from typing import Any

import torch
from torch import Tensor

from lighten.errors import ArtifactError, ConfigError


def describe(value: Any) -> Any:
    """Plain data for a nest of tuples, lists and dicts of tensors, numbers, strings and None.

    Raises:
        ConfigError: something else is in it.
    """
    if isinstance(value, Tensor):
        return {"tensor": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, (tuple, list)):
        return {type(value).__name__: [describe(part) for part in value]}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": {key: describe(part) for key, part in value.items()}}
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"constant": value}
    raise ConfigError(
        f"The model takes a {type(value).__name__}, which cannot be stored. Pass example_inputs to restore."
    )


def rebuild(data: Any) -> Any:
    """Inputs as described, with zeros for data.

    Raises:
        ArtifactError: it is not a description.
    """
    try:
        match data:
            case {"tensor": shape, "dtype": dtype}:
                return torch.zeros(shape, dtype=getattr(torch, dtype))
            case {"tuple": parts}:
                return tuple(rebuild(part) for part in parts)
            case {"list": parts}:
                return [rebuild(part) for part in parts]
            case {"dict": parts}:
                return {key: rebuild(part) for key, part in parts.items()}
            case {"constant": value}:
                return value
    except (AttributeError, TypeError, RuntimeError) as error:
        raise ArtifactError(f"The stored description of the inputs is damaged: {error}.") from error
    raise ArtifactError(f"The stored description of the inputs is damaged: {data!r}.")
