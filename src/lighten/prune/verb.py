"""prune: the verb. Checks the settings and hands the work to the engine of the granularity."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from lighten.errors import ConfigError
from lighten.graph.capture import CapturedModule
from lighten.prune.channels import prune_channels
from lighten.prune.depth import prune_blocks
from lighten.prune.elements import ElementConfig, peek, prune_elements
from lighten.prune.heads import STRUCTURED
from lighten.prune.patterns import KNOWN, parse_pattern
from lighten.prune.select import SelectConfig
from lighten.task import as_args


def prune(
    model: nn.Module,
    ratio: float,
    *,
    granularity: str = "channel",
    importance: str = "l2",
    scope: str = "global",
    round_to: int = 1,
    min_keep: int = 1,
    example_inputs: tuple[Any, ...] | None = None,
    calibration: Iterable[Any] | None = None,
    loss: Callable[[Any, Any], Tensor] | None = None,
    overrides: Mapping[str, float] | None = None,
    exclude: Iterable[str] = (),
    refit: bool = False,
) -> CapturedModule:
    """A pruned copy of model; model itself is not modified.

    granularity: "channel" takes channels out, "head" whole attention heads, "head_dim" the dimensions of heads,
    "layer" residual blocks, by how much the outputs change without them. "element", "n:m" (n of every m inputs stay)
    and "block:RxC" (R outputs × C inputs) hold weights at zero, through further training too, see lighten.prune.masks.
    ratio: share of what can go that goes, in [0, 1). scope: "global" over all layers, "layer" in each; for weights
    also "erk", for channels "macs": over all layers, by importance over the multiply–accumulates that go with a
    channel. round_to: channel counts that are left are multiples of this. min_keep: at least so many are left in
    every layer. example_inputs: positional arguments of model; None = the first calibration batch. calibration: batches
    of inputs for criteria that look at data, or of (inputs, target) where loss (outputs, target) -> scalar is given.
    overrides: ratios of their own for layers, by shell patterns over module names; the last that matches counts, and
    ratio is that of all other layers. exclude: shell patterns over module names, never touched. refit: whether layers
    that lost inputs are fitted on calibration to what they made of all of them, see lighten.prune.refit; channels and
    heads only. What was pruned, and what was left alone and why, is in the result's `plan`.

    Raises:
        ConfigError: a setting is out of range or unknown. TaskError: calibration data is missing or does not fit.
        CaptureError: the model cannot be traced.
    """
    known = granularity in (*STRUCTURED, "layer", "element") or ":" in granularity
    if not known:
        raise ConfigError(
            f"granularity='{granularity}' is not available. Available: channel, {KNOWN}; of attention: head, head_dim; "
            "of residual blocks: layer."
        )
    if calibration is not None:
        first, calibration = peek(calibration)
        if example_inputs is None:
            example_inputs = as_args(first[0] if loss is not None else first)
    if example_inputs is None:
        raise ConfigError("prune needs example_inputs, the positional arguments of model as a tuple, or calibration.")
    overrides, exclude = dict(overrides or {}), tuple(exclude)
    if refit and (calibration is None or granularity not in STRUCTURED):
        raise ConfigError(
            f"refit=True needs calibration=[batch, …], and {', '.join(STRUCTURED)} as granularity; it is "
            f"'{granularity}', {'without' if calibration is None else 'with'} calibration."
        )
    if granularity in STRUCTURED:
        if refit and calibration is not None:
            calibration = list(calibration)  # read more than once
        pruned: CapturedModule = prune_channels(
            model,
            SelectConfig(ratio=ratio, scope=scope, round_to=round_to, min_keep=min_keep),
            importance=importance,
            granularity=granularity,
            example_inputs=example_inputs,
            calibration=calibration,
            loss=loss,
            overrides=overrides,
            exclude=exclude,
            refit=list(_inputs(calibration, loss)) if refit and calibration is not None else None,
        )
    else:
        _only_for_channels(granularity, round_to=round_to, min_keep=min_keep)
        if overrides and (granularity == "layer" or parse_pattern(granularity).is_n_of_m):
            raise ConfigError(f"overrides={overrides}: granularity='{granularity}' has one ratio for all layers.")
        if granularity == "layer":
            inputs = None if calibration is None else _inputs(calibration, loss)
            pruned = prune_blocks(model, ratio, example_inputs=example_inputs, calibration=inputs, exclude=exclude)
        else:
            pruned = prune_elements(
                model,
                ElementConfig(pattern=parse_pattern(granularity), ratio=ratio, scope=scope),
                importance=importance,
                example_inputs=example_inputs,
                calibration=calibration,
                loss=loss,
                overrides=overrides,
                exclude=exclude,
            )
    pruned.plan = replace(
        pruned.plan,
        granularity=granularity,
        round_to=round_to,
        min_keep=min_keep,
        overrides=overrides,
        exclude=list(exclude),
    )
    return pruned


def _inputs(calibration: Iterable[Any], loss: Callable[[Any, Any], Tensor] | None) -> Iterator[Any]:
    """Batches of inputs alone; with a loss they are pairs."""
    return (batch if loss is None else batch[0] for batch in calibration)


def _only_for_channels(granularity: str, **settings: int) -> None:
    for name, value in settings.items():
        if value != 1:
            raise ConfigError(f"{name}={value} is for channels; granularity='{granularity}' takes none out.")
