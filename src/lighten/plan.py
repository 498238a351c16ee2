"""Plan: the one object that says what is done to each layer. Search writes it, the engines read it, YAML stores it.

A layer is named by its module path in the original model. A Plan that a user writes by hand is a recipe; a Plan that
a finished run wrote replays that run.
"""

from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import yaml

from lighten.errors import ConfigError

T = TypeVar("T")
FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class LayerPlan:
    """What is done to one layer.

    channels, kept: output channels before and after pruning (None = not looked at by pruning). sparsity: share of its
    weights that are held at zero. granularity: what was removed. scheme: "w8a8", …, or None for float. method: how its
    weights were rounded.
    """

    channels: int | None = None
    kept: int | None = None
    sparsity: float | None = None
    granularity: str | None = None
    scheme: str | None = None
    method: str | None = None

    def __post_init__(self) -> None:
        if self.kept is not None and (self.channels is None or not 0 < self.kept <= self.channels):
            raise ConfigError(
                f"kept={self.kept} of channels={self.channels} is impossible. Keep between 1 and all of them."
            )
        if self.sparsity is not None and not 0 <= self.sparsity <= 1:
            raise ConfigError(f"sparsity={self.sparsity} is outside 0..1. 0.9 holds nine of ten weights at zero.")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is done to a model.

    layers: by module path. ratio, granularity, importance, scope, schedule, round_to, min_keep, overrides, exclude,
    refit: what pruning was asked for, see lighten.prune; granularity None = nothing was pruned.
    scheme: the number format asked for, None = float. method: how weights were rounded. steps: what was done to the
    float model before. observer: how activation ranges were found. weight_bits: bits of a weight code actually used.
    weight_bits_because: why they are fewer than the scheme's, where the CPU decided that.
    epochs: of fine-tuning after pruning. runtime, threads: what it was measured on. skipped: layers that were left
    alone although asked for, with the reason.
    """

    layers: dict[str, LayerPlan] = field(default_factory=dict)
    ratio: float = 0.0
    granularity: str | None = None
    importance: str | None = None
    scope: str | None = None
    schedule: str = "one-shot"
    round_to: int = 1
    min_keep: int = 1
    overrides: dict[str, float] = field(default_factory=dict)
    exclude: list[str] = field(default_factory=list)
    refit: bool = False
    epochs: int = 0
    scheme: str | None = None
    method: str | None = None
    steps: list[str] = field(default_factory=list)
    observer: str | None = None
    weight_bits: int | None = None
    weight_bits_because: str | None = None
    runtime: str = "onnxruntime"
    threads: int | None = None
    seed: int = 0
    skipped: dict[str, str] = field(default_factory=dict)

    def with_layers(self, update: dict[str, LayerPlan], **changes: Any) -> "Plan":
        """A copy in which the settings of update (those that are not None) are added to the layers'."""
        layers = dict(self.layers)
        for name, new in update.items():
            known = {key: value for key, value in asdict(new).items() if value is not None}
            layers[name] = replace(layers.get(name, LayerPlan()), **known)
        skipped = {**self.skipped, **changes.pop("skipped", {})}
        return replace(self, layers=layers, skipped=skipped, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain data; settings that are None are left out."""
        data = {"version": FORMAT_VERSION, **_without_none(asdict(self))}
        data["layers"] = {name: _without_none(layer) for name, layer in asdict(self)["layers"].items()}
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Plan":
        """The inverse of to_dict.

        Raises:
            ConfigError: an unknown key, a wrong version, or a value out of range.
        """
        if not isinstance(data, dict):
            raise ConfigError(f"A plan is a mapping, not {type(data).__name__}. See docs/architecture.md for one.")
        data = dict(data)
        version = data.pop("version", None)
        if version != FORMAT_VERSION:
            raise ConfigError(f"Plan version {version!r} is not {FORMAT_VERSION}, the one this lighten reads.")
        layers = {name: _build(LayerPlan, layer, f"layer '{name}'") for name, layer in data.pop("layers", {}).items()}
        return replace(_build(cls, data, "plan"), layers=layers)

    def save(self, path: Path) -> None:
        """Write YAML."""
        path.write_text(yaml.safe_dump(self.to_dict(), sort_keys=False), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "Plan":
        """Read YAML.

        Raises:
            ConfigError: not there, not YAML, or not a plan.
        """
        try:
            return cls.from_dict(yaml.safe_load(path.read_text(encoding="utf-8")))
        except (OSError, yaml.YAMLError) as error:
            raise ConfigError(f"Cannot read the plan '{path}': {error}") from error


def _without_none(data: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in data.items() if value is not None}


def _build(kind: type[T], data: dict[str, Any], what: str) -> T:
    known = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    if unknown := set(data) - known:
        raise ConfigError(f"Unknown key {sorted(unknown)} in {what}. Known: {sorted(known)}.")
    return kind(**data)
