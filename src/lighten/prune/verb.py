"""prune: the verb. Checks the settings and hands the work to the engine of the granularity."""

from collections.abc import Iterable
from typing import Any

from torch import nn

from lighten.errors import ConfigError
from lighten.graph.capture import CapturedModule
from lighten.prune.channels import prune_channels
from lighten.prune.select import SelectConfig

GRANULARITIES = ("channel",)


def prune(
    model: nn.Module,
    ratio: float,
    *,
    granularity: str = "channel",
    importance: str = "l2",
    scope: str = "global",
    round_to: int = 1,
    example_inputs: tuple[Any, ...],
    exclude: Iterable[str] = (),
) -> CapturedModule:
    """A smaller copy of model, from which the least important channels are gone; model itself is not modified.

    ratio: share of the removable channels that go, in [0, 1). scope: "global" over all layers, "layer" in each.
    round_to: channel counts that are left are multiples of this. example_inputs: positional arguments of model.
    exclude: shell patterns over module names, never touched. What was removed and what was left alone, with the
    reason, is in the result's `plan`.

    Raises:
        ConfigError: a setting is out of range or unknown. CaptureError: the model cannot be traced.
    """
    if granularity not in GRANULARITIES:
        raise ConfigError(f"granularity='{granularity}' is not available. Available: {', '.join(GRANULARITIES)}.")
    config = SelectConfig(ratio=ratio, scope=scope, round_to=round_to)
    return prune_channels(model, config, importance=importance, example_inputs=example_inputs, exclude=exclude)
