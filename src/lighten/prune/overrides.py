"""Overrides: a ratio of its own for the layers that a shell pattern names."""

from collections.abc import Iterable, Mapping

from lighten.errors import ConfigError
from lighten.graph.groups import matches


def own_ratios(layers: list[tuple[str, ...]], overrides: Mapping[str, float]) -> list[float | None]:
    """For each entry of layers, the names of layers that are pruned together: its own ratio, None = the common one.

    overrides: pattern -> ratio. Where several patterns match, the last one counts, so that exceptions follow the rule.

    Raises:
        ConfigError: a ratio is outside [0, 1), or a pattern matches no layer that can be pruned.
    """
    for pattern, ratio in overrides.items():
        if not 0 <= ratio < 1:
            raise ConfigError(f"overrides: ratio {ratio} of '{pattern}' is outside [0, 1). 0 keeps all of a layer.")
        if not any(matches(name, [pattern]) for names in layers for name in names):
            known = ", ".join(name for names in layers[:5] for name in names[:1])
            raise ConfigError(f"overrides: '{pattern}' matches no layer that can be pruned. There are {known}, ….")
    return [_last_match(names, overrides) for names in layers]


def _last_match(names: Iterable[str], overrides: Mapping[str, float]) -> float | None:
    names = tuple(names)
    found = [ratio for pattern, ratio in overrides.items() if any(matches(name, [pattern]) for name in names)]
    return found[-1] if found else None
