"""TensorSpec: the name, dtype and shape of one input or output, and the check of arrays against them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lighten.errors import ConfigError

BATCH = "batch"
DTYPES = (
    *("float16", "float32", "float64", "bool"),
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
)

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class TensorSpec:
    """One input or output. dtype: numpy's name. shape: an int is a fixed size, a name (usually "batch") a free one.

    A name that appears twice, in one shape or in several, means the same size everywhere.

    Raises:
        ConfigError: no name, an unknown dtype, or a size that is neither a count nor a name.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ConfigError(f"A tensor is named {self.name!r}. Give it a name that is not empty.")
        if self.dtype not in DTYPES:
            raise ConfigError(f"'{self.name}' has dtype {self.dtype!r}. Use one of {', '.join(DTYPES)}.")
        if not isinstance(self.shape, tuple) or not all(_is_size(size) for size in self.shape):
            raise ConfigError(f"'{self.name}' has shape {self.shape!r}. Use a tuple of counts, and 'batch' where free.")

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as the manifest holds it."""
        return {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "TensorSpec":
        """The inverse of to_dict.

        Raises:
            ConfigError: not such a mapping.
        """
        if not isinstance(data, Mapping) or set(data) != {"name", "dtype", "shape"}:
            raise ConfigError(f"A tensor is described by name, dtype and shape, not by {data!r}.")
        shape = data["shape"]
        return cls(data["name"], data["dtype"], tuple(shape) if isinstance(shape, list) else shape)


def check_arrays(specs: Sequence[TensorSpec], arrays: Sequence[Array]) -> dict[str, int]:
    """Check arrays against specs, one each, in order. Returns the size that every free axis has in this call.

    Raises:
        ConfigError: the number of arrays, a rank, a size or a dtype differs; the message names the input.
    """
    if len(arrays) != len(specs):
        names = ", ".join(f"'{spec.name}'" for spec in specs)
        raise ConfigError(f"Got {len(arrays)} inputs, but the model takes {len(specs)}: {names}.")
    sizes: dict[str, int] = {}
    for spec, array in zip(specs, arrays, strict=True):
        if array.dtype.name != spec.dtype:
            raise ConfigError(
                f"Input '{spec.name}' is {array.dtype.name}, but the model takes {spec.dtype}. Convert it first; "
                "nothing is converted silently, because that can change the answer."
            )
        if array.ndim != len(spec.shape):
            raise ConfigError(
                f"Input '{spec.name}' has {array.ndim} axes, {_show(array.shape)}, but the model takes "
                f"{len(spec.shape)}: {_show(spec.shape)}.{_missing_batch_hint(spec, array)}"
            )
        for got, expected in zip(array.shape, spec.shape, strict=True):
            if got != (sizes.setdefault(expected, got) if isinstance(expected, str) else expected):
                bound = "".join(f" ({name} = {size})" for name, size in sizes.items() if name in spec.shape)
                raise ConfigError(
                    f"Input '{spec.name}' has shape {_show(array.shape)}, but the model takes "
                    f"{_show(spec.shape)}{bound}."
                )
    return sizes


def _is_size(size: Any) -> bool:
    return (isinstance(size, int) and not isinstance(size, bool) and size >= 0) or (
        isinstance(size, str) and bool(size)
    )


def _show(shape: Sequence[int | str]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"


def _missing_batch_hint(spec: TensorSpec, array: Array) -> str:
    if spec.shape[:1] == (BATCH,) and array.shape == spec.shape[1:]:
        return " Add the batch axis: x[None]."
    return ""
