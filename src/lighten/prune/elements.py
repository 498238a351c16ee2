"""Unstructured and semi-structured pruning: score single weights, choose exactly, hold the losers at zero.

The result has the shapes of the original and a mask for each pruned weight; see lighten.prune.masks.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lighten.errors import CaptureError, ConfigError, TaskError
from lighten.graph.arguments import arguments
from lighten.graph.capture import CapturedModule, capture, get_tensor
from lighten.plan import LayerPlan
from lighten.prune import methods  # noqa: F401  importing the package fills the registries
from lighten.prune.allocate import SCOPES, check_ratio, counts_gone, share_gone
from lighten.prune.calibration import input_statistics
from lighten.prune.gradients import mean_gradients
from lighten.prune.history import remember_inputs_
from lighten.prune.layers import WeightLayer, check_finite, find_layers
from lighten.prune.masks import MaskedModule, mask_weights, masks
from lighten.prune.methods.layer_data import LayerData, weight_importance, weight_update
from lighten.prune.overrides import own_ratios
from lighten.prune.patterns import Pattern, keep_mask, n_of_m_mask
from lighten.prune.reconstruct import reconstruct_
from lighten.registry import Entry

aten = torch.ops.aten
Loss = Callable[[Any, Any], Tensor]


@dataclass(frozen=True, kw_only=True)
class ElementConfig:
    """pattern, ratio, scope: what goes; see lighten.prune. Of n:m the ratio must be the pattern's own."""

    pattern: Pattern
    ratio: float
    scope: str = "global"

    def __post_init__(self) -> None:
        check_ratio(self.ratio)
        if self.scope not in SCOPES:
            raise ConfigError(f"scope='{self.scope}' is unknown. Use one of {', '.join(SCOPES)}.")
        if self.pattern.is_n_of_m and abs(self.ratio - self.pattern.ratio) > 1e-6:
            raise ConfigError(
                f"ratio={self.ratio} with granularity='{self.pattern.name}': the pattern itself prunes "
                f"{self.pattern.ratio:g} of every layer. Give ratio={self.pattern.ratio:g}, or use 'element'."
            )


def prune_elements(
    model: nn.Module,
    config: ElementConfig,
    *,
    importance: str | object,
    example_inputs: tuple[Any, ...],
    calibration: Iterable[Any] | None = None,
    loss: Loss | None = None,
    overrides: Mapping[str, float] | None = None,
    exclude: Iterable[str] = (),
) -> MaskedModule:
    """A copy of model with single weights held at zero; see lighten.prune.

    What is pruned already counts and stays pruned, except by methods that move the other weights: they choose anew.

    Raises:
        ConfigError: a setting is unknown or out of range, or no layer takes the pattern. TaskError: calibration data is
        missing or does not fit. CaptureError: the model cannot be traced, or a weight is NaN or infinite.
    """
    entry, method = resolve(importance)
    captured = capture(model, example_inputs)
    layers, skipped = find_layers(captured, exclude)
    layers, unfit = _that_fit(captured, layers, config.pattern)
    if not layers:
        raise ConfigError(_nothing_fits(config.pattern, {**skipped, **unfit}))
    batches = _batches(calibration, method, loss)
    data = _gather(captured, layers, config.pattern, method, batches, loss)
    before = masks(captured)
    scores = [
        _scored(entry, method, layer, data[layer.name], before.get(layer.parameter), config.pattern) for layer in layers
    ]
    shapes = [get_tensor(captured, layer.parameter).shape for layer in layers]
    chosen = choose_masks(scores, shapes, config, own_ratios([(layer.name,) for layer in layers], overrides or {}))
    if entry.name in {updating.name for updating in weight_update}:
        assert batches is not None
        chosen = reconstruct_(
            captured, layers, data, chosen, method=entry.name, config=method, pattern=config.pattern, batches=batches
        )
    made = {
        layer.parameter: config.pattern.restore(mask, get_tensor(captured, layer.parameter).shape)
        for layer, mask in zip(layers, chosen, strict=True)
    }
    masked = mask_weights(captured, made)
    remember_inputs_(masked, example_inputs)
    masked.plan = replace(_recorded(masked, layers, made, config, {**skipped, **unfit}), importance=entry.name)
    return masked


def resolve(importance: str | object) -> tuple[Entry[Any], Any]:
    """The method that importance names, or whose config it is, and that config.

    Raises:
        ConfigError: there is none.
    """
    if isinstance(importance, str):
        entry = weight_importance[importance]
        return entry, entry.config()
    for entry in weight_importance:
        if type(importance) is entry.config:
            return entry, importance
    raise ConfigError(f"importance={importance!r} is neither the name nor the config of a method for single weights.")


def choose_masks(
    scores: list[Tensor], shapes: list[torch.Size], config: ElementConfig, own: list[float | None] | None = None
) -> list[Tensor]:
    """From scores [out, columns] of each layer to its mask, True = keep. own: ratios of layers that have one."""
    pattern = config.pattern
    if pattern.is_n_of_m:
        return [n_of_m_mask(s, pattern.keep, pattern.of) for s in scores]
    units = [pattern.units(s) for s in scores]
    own = [None] * len(scores) if own is None else own
    common = [i for i, ratio in enumerate(own) if ratio is None]
    shared = counts_gone([units[i] for i in common], [shapes[i] for i in common], config.ratio, config.scope)
    counts = [0 if ratio is None else share_gone(units[i].numel(), ratio) for i, ratio in enumerate(own)]
    for i, count in zip(common, shared, strict=True):
        counts[i] = count
    return [pattern.spread(keep_mask(u, count)) for u, count in zip(units, counts, strict=True)]


def _that_fit(
    captured: CapturedModule, layers: list[WeightLayer], pattern: Pattern
) -> tuple[list[WeightLayer], dict[str, str]]:
    fit, unfit = [], {}
    for layer in layers:
        weight = get_tensor(captured, layer.parameter)
        check_finite(layer.name, weight)
        if reason := pattern.misfit(weight.shape):
            unfit[layer.name] = f"not pruned: {reason}"
        else:
            fit.append(layer)
    return fit, unfit


def _nothing_fits(pattern: Pattern, skipped: dict[str, str]) -> str:
    reasons = "; ".join(f"'{name}': {why}" for name, why in list(skipped.items())[:3]) or "it has no such layer"
    return f"No layer of the model can be pruned with granularity='{pattern.name}': {reasons}."


def _gather(
    captured: CapturedModule,
    layers: list[WeightLayer],
    pattern: Pattern,
    method: Any,
    batches: list[Any] | None,
    loss: Loss | None,
) -> dict[str, LayerData]:
    """What the method needs to know of each layer, in the layout of the pattern."""
    needs = getattr(method, "needs", None)
    seen: dict[str, dict[str, Tensor]] = {layer.name: {} for layer in layers}
    if needs is not None and batches is None:
        raise TaskError(
            f"{type(method).__name__.removesuffix('Config')} looks at data and got none. Pass calibration=[batch, …]; "
            "100 to 500 typical samples are enough."
        )
    if needs in ("inputs", "hessian"):
        assert batches is not None
        full = needs == "hessian"
        for name, mean in input_statistics(captured, layers, batches, full=full).items():
            seen[name] = {"second_moment": mean} if full else {"input_square": mean}
    elif needs == "gradients":
        assert batches is not None
        found = mean_gradients(captured, [layer.parameter for layer in layers], batches, loss)
        for layer in layers:
            seen[layer.name] = dict(zip(("gradient", "fisher"), found[layer.parameter], strict=True))
    return {layer.name: _layer_data(captured, layer, pattern, seen[layer.name]) for layer in layers}


def _layer_data(captured: CapturedModule, layer: WeightLayer, pattern: Pattern, seen: dict[str, Tensor]) -> LayerData:
    weight = get_tensor(captured, layer.parameter).detach()
    order = pattern.column_order(weight.shape)
    moment = seen.get("second_moment")
    square = seen.get("input_square") if moment is None else moment.diagonal(dim1=1, dim2=2)
    return LayerData(
        weight=pattern.matrix(weight.float()),
        output_scale=output_scale(captured, layer),
        groups=layer.groups,
        input_square=None if square is None else square[:, order],
        hessian=None if moment is None else 2 * moment[:, order][:, :, order],
        gradient=pattern.matrix(seen["gradient"]) if "gradient" in seen else None,
        fisher=pattern.matrix(seen["fisher"]) if "fisher" in seen else None,
    )


def output_scale(captured: CapturedModule, layer: WeightLayer) -> Tensor:
    """[out] the factor that a batch norm right after the layer puts on each output in eval mode; 1 without one."""
    n_out = get_tensor(captured, layer.parameter).shape[0]
    users = list(layer.nodes[0].users)
    if len(layer.nodes) > 1 or len(users) != 1 or users[0].target != aten.batch_norm.default:
        return torch.ones(n_out)
    given = arguments(users[0])
    variance = get_tensor(captured, str(given["running_var"].target)).detach().float()
    factor: Tensor = (variance + given["eps"]).rsqrt()
    if given["weight"] is not None:
        factor *= get_tensor(captured, str(given["weight"].target)).detach().float().abs()
    return factor


def _scored(
    entry: Entry[Any], method: Any, layer: WeightLayer, data: LayerData, before: Tensor | None, pattern: Pattern
) -> Tensor:
    scores: Tensor = entry.function(data, method)
    if not scores.isfinite().all():
        raise CaptureError(f"importance='{entry.name}' is NaN or infinite in layer '{layer.name}'. Check its weights.")
    # Below all scores, so that a unit that is pruned already is the first to go.
    return (
        scores if before is None else scores.masked_fill(~pattern.matrix(before), -torch.finfo(scores.dtype).max / 1e9)
    )


def _recorded(
    masked: MaskedModule,
    layers: list[WeightLayer],
    made: dict[str, Tensor],
    config: ElementConfig,
    skipped: dict[str, str],
) -> Any:
    plans = {}
    for layer in layers:
        sparsity = 1 - float(made[layer.parameter].double().mean())
        plans[layer.name] = LayerPlan(sparsity=sparsity, granularity=config.pattern.name)
    return masked.plan.with_layers(plans, ratio=config.ratio, scope=config.scope, skipped=skipped)


def _batches(calibration: Iterable[Any] | None, method: Any, loss: Loss | None) -> list[Any] | None:
    """The batches as the method takes them: with targets where it looks at gradients of the loss, else without."""
    if calibration is None or getattr(method, "needs", None) is None:
        return None
    return [batch if loss is None or method.needs == "gradients" else batch[0] for batch in calibration]


def peek(calibration: Iterable[Any]) -> tuple[Any, Iterable[Any]]:
    """The first batch, and all of them again.

    Raises:
        TaskError: it is a tensor, or empty.
    """
    if isinstance(calibration, Tensor):
        raise TaskError("calibration is a tensor, but must be a list of batches. Pass calibration=[batch, …].")
    batches = iter(calibration)
    for first in batches:
        return first, itertools.chain([first], batches)
    raise TaskError("The calibration data is empty. Pass calibration=[batch, …]; 100 to 500 samples are enough.")
