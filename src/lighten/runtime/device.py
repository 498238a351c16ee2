"""DeviceProfile: hardware that is described rather than present, as a YAML file in which every figure has its source.

name: raspberry-pi-5
description: 4 × Cortex-A76 at 2.4 GHz
peak_macs_per_s:                 # by dtype; a dtype that is not here is not supported
  float32: {value: 7.68e10, source: where it comes from}
efficiency: {value: 0.5, source: …}            # share of the peak that dense layers reach
depthwise_efficiency: {value: 0.1, source: …}  # and that depthwise convolutions reach
memory_bytes_per_s: {value: 1.7e10, source: …}
cache_bytes: {value: 2.0e6, source: …}         # optional, both: a layer that fits runs at the cache's speed
cache_bytes_per_s: {value: 1.0e11, source: …}
op_overhead_s: {value: 5.0e-6, source: …}      # of every operator, whatever its size
channel_alignment:               # by dtype: channels are computed in multiples of this
  float32: {value: 4, source: …}
"""

import importlib.resources
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lighten.errors import ConfigError

BYTES_PER_ELEMENT = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}


@dataclass(frozen=True)
class Figure:
    """A number and where it comes from."""

    value: float
    source: str

    def __post_init__(self) -> None:
        if isinstance(self.value, bool) or not isinstance(self.value, (int, float)):
            raise ConfigError(f"The figure {self.value!r} is not a number. Write 1.0e9, with the point, in YAML.")
        if not (math.isfinite(self.value) and self.value > 0):
            raise ConfigError(f"The figure {self.value} is not positive and finite.")
        if not isinstance(self.source, str) or not self.source.strip():
            raise ConfigError(f"The figure {self.value} has no source. Say where it comes from, even if assumed.")


@dataclass(frozen=True, kw_only=True)
class DeviceProfile:
    """See the file. Units: multiply-accumulates, bytes and seconds."""

    name: str
    description: str
    peak_macs_per_s: Mapping[str, Figure]
    efficiency: Figure
    depthwise_efficiency: Figure
    memory_bytes_per_s: Figure
    op_overhead_s: Figure
    channel_alignment: Mapping[str, Figure] = field(default_factory=dict)
    cache_bytes: Figure | None = None
    cache_bytes_per_s: Figure | None = None

    def __post_init__(self) -> None:
        if unknown := (set(self.peak_macs_per_s) | set(self.channel_alignment)) - set(BYTES_PER_ELEMENT):
            raise ConfigError(
                f"Profile '{self.name}' has the dtypes {sorted(unknown)}. Known: {', '.join(BYTES_PER_ELEMENT)}."
            )
        if not self.peak_macs_per_s:
            raise ConfigError(f"Profile '{self.name}' supports no dtype. Give peak_macs_per_s at least one.")
        if (self.cache_bytes is None) != (self.cache_bytes_per_s is None):
            raise ConfigError(f"Profile '{self.name}' has one of cache_bytes and cache_bytes_per_s. Give both or none.")

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as the YAML file holds it."""
        return {key: _plain(value) for key, value in vars(self).items() if value not in (None, {})}

    @classmethod
    def from_dict(cls, data: Any) -> "DeviceProfile":
        """The inverse of to_dict.

        Raises:
            ConfigError: a key is missing or unknown, or a figure is not {value, source}.
        """
        known = set(cls.__dataclass_fields__)
        if not isinstance(data, dict) or set(data) - known:
            odd = sorted(map(str, set(data) - known)) if isinstance(data, dict) else type(data).__name__
            raise ConfigError(f"A device profile is a mapping with the keys {', '.join(sorted(known))}; got {odd}.")
        try:
            return cls(**{key: _figures(key, value) for key, value in data.items()})
        except TypeError as error:
            raise ConfigError(f"A device profile is incomplete: {error}.") from error

    def save(self, path: Path) -> None:
        """Write YAML."""
        path.write_text(yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True), encoding="utf-8")


def shipped_profiles() -> list[str]:
    """Names of the profiles that come with lighten."""
    folder = importlib.resources.files("lighten.runtime") / "devices"
    return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))


def load_profile(name_or_path: str | Path) -> DeviceProfile:
    """A shipped profile by its name, or one from a YAML file.

    Raises:
        ConfigError: there is no such profile or file, or it is not a profile.
    """
    text = str(name_or_path)
    try:
        if text in shipped_profiles():
            content = (importlib.resources.files("lighten.runtime") / "devices" / f"{text}.yaml").read_text("utf-8")
        else:
            content = Path(text).read_text(encoding="utf-8")
        return DeviceProfile.from_dict(yaml.safe_load(content))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"There is no device profile '{text}': not shipped ({', '.join(shipped_profiles())}), and no such file."
        ) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"The device profile '{text}' is not YAML: {error}") from error


def _figures(key: str, value: Any) -> Any:
    if key in ("name", "description"):
        if not isinstance(value, str):
            raise ConfigError(f"{key} of a device profile is {value!r}, which is not text.")
        return value
    if not isinstance(value, dict):
        raise ConfigError(f"{key} of a device profile is {value!r}. A figure is {{value: …, source: …}}.")
    if key in ("peak_macs_per_s", "channel_alignment"):
        return {str(dtype): _figures(f"{key}.{dtype}", figure) for dtype, figure in value.items()}
    if set(value) != {"value", "source"}:
        raise ConfigError(
            f"{key} of a device profile has {sorted(map(str, value))}. A figure is {{value: …, source: …}}."
        )
    return Figure(value["value"], value["source"])


def _plain(value: Any) -> Any:
    if isinstance(value, Figure):
        return {"value": value.value, "source": value.source}
    return {key: _plain(item) for key, item in value.items()} if isinstance(value, Mapping) else value
