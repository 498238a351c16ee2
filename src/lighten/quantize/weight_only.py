"""Weight-only quantization: weights as packed codes, computation in the model's own floats.

What is read from memory shrinks, which is what limits a large linear layer at batch size 1; what is computed does not.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from lighten.errors import CaptureError, ConfigError
from lighten.graph.arguments import arguments
from lighten.graph.capture import CapturedModule, get_tensor
from lighten.graph.fold import fold_batch_norm_
from lighten.plan import LayerPlan
from lighten.quantize import weight_ops
from lighten.quantize.assignment import Assignment
from lighten.quantize.formats import CodebookFormat, Float8Format, Format, IntegerFormat, QuantizedWeight, format_of
from lighten.quantize.layerwise import run_layer_by_layer
from lighten.quantize.methods.config import MethodConfig
from lighten.quantize.methods.rtn import RTNConfig
from lighten.quantize.moments import Moments, aim
from lighten.quantize.packing import pack
from lighten.quantize.progress import OnProgress, silent
from lighten.quantize.rescale import divide_input_
from lighten.quantize.steps.bias_correction import correct_biases_, exact_twins, give_bias_
from lighten.quantize.steps.equalization import EqualizationConfig, equalize_
from lighten.quantize.store import replace_parameter_
from lighten.quantize.weights import StoredWeight, find_weights
from lighten.registry import Entry
from lighten.registry import quantizer as registry

_LINEAR = torch.ops.aten.linear.default


def quantize_weights(
    captured: CapturedModule,
    assignment: Assignment,
    config: MethodConfig,
    batches: Iterable[Any],
    exclude: Iterable[str],
    steps: tuple[str, ...] = (),
    on_progress: OnProgress = silent,
) -> None:
    """Replace the weights of captured by packed codes, in place; its plan says which, and how each was rounded.

    steps: "equalization" and "bias-correction", see lighten.quantize.steps; the latter of layers whose weight is their
    own. batches: read only by the latter and by a method that needs inputs. Where it cannot have them (embeddings,
    recurrent layers), or cannot do what it does (see MethodConfig), weights are rounded to nearest, and the layer's
    plan says so.

    Raises:
        ConfigError: the method does not round to this format. CaptureError: a weight is NaN or infinite. TaskError: see
        lighten.quantize.layerwise.
    """
    entry = entry_of(config)
    for scheme in assignment.schemes:
        if config.integers_only and not isinstance(format_of(scheme), IntegerFormat):
            raise ConfigError(
                f"{entry.name} rounds to evenly spaced codes, which {scheme.name} has not. Use rtn or gptq."
            )
    fold_batch_norm_(captured)
    weights, skipped = find_weights(captured, exclude)
    for weight in weights:
        _must_be_numbers(get_tensor(captured, str(weight.parameter.target)), weight.layer)
    if "equalization" in steps:
        equalize_(captured, EqualizationConfig())
    exact = None
    if "bias-correction" in steps:
        batches = list(batches)
        exact = exact_twins(captured, _with_own_biases_(captured, weights))
    layers: dict[str, LayerPlan] = {}
    rounded: list[tuple[StoredWeight, QuantizedWeight]] = []

    def work(weight: StoredWeight, moments: Moments | None) -> Tensor:
        value = get_tensor(captured, str(weight.parameter.target)).detach()
        scheme = assignment.of(weight.layer)
        used = config if _can_use(config, weight) else RTNConfig()
        doing = f"{weight.layer}, {scheme.name} by {entry_of(used).name}"
        on_progress(f"layer {len(rounded) + 1} of {len(weights)}, {doing}")
        quantized = round_weight(value, format_of(scheme), scheme.group_size, used, moments)
        rounded.append((weight, quantized))
        layers[weight.layer] = LayerPlan(scheme=scheme.name, method=entry_of(used).name)
        return quantized.effective().view(value.shape).to(value)

    if config.needs_inputs:
        run_layer_by_layer(captured, weights, batches, work)
    else:
        for weight in weights:
            work(weight, None)
    for weight, quantized in rounded:
        store_weight_(captured, weight, quantized)
    captured.graph.eliminate_dead_code()
    captured.delete_all_unused_submodules()
    captured.graph.lint()
    captured.recompile()
    if exact is not None:
        correct_biases_(captured, *exact, batches)
    captured.plan = captured.plan.with_layers(
        layers,
        skipped=skipped,
        scheme=assignment.name,
        method=entry.name,
        steps=list(steps),
        weight_bits=None if assignment.special else assignment.default.weight_bits,
    )


def _with_own_biases_(captured: CapturedModule, weights: Iterable[StoredWeight]) -> list[fx.Node]:
    """The layers whose weight and bias are read by nobody else; those without a bias get one of zeros."""
    found = []
    for weight in weights:
        if weight.reader is None or weight.shared:
            continue
        give_bias_(captured, weight.reader)
        bias = arguments(weight.reader)["bias"]
        if bias.op == "get_attr" and len(bias.users) == 1:
            found.append(weight.reader)
    return found


def _can_use(config: MethodConfig, weight: StoredWeight) -> bool:
    if config.scales_inputs and (weight.shared or weight.reader is None or weight.reader.target != _LINEAR):
        return False
    return weight.reader is not None or not config.needs_inputs


def entry_of(config: MethodConfig) -> Entry[Any]:
    """The registered method that config sets up."""
    return next(entry for entry in registry if entry.config is type(config))


def round_weight(
    weight: Tensor, form: Format, group_size: int | None, config: MethodConfig, moments: Moments | None
) -> QuantizedWeight:
    """weight [out, …] as codes of its rows. moments: None = of a method that needs no inputs.

    Where inputs are not those of the network as given, what is rounded is the weight that makes up for that: see aim.
    """
    matrix = weight.detach().flatten(1).cpu()
    function = entry_of(config).function
    if moments is None:
        quantized = function(matrix, form, group_size, config)
    else:
        quantized = function(aim(matrix, moments), form, group_size, config, moments)
    assert isinstance(quantized, QuantizedWeight)
    return quantized


def store_weight_(captured: CapturedModule, weight: StoredWeight, quantized: QuantizedWeight) -> None:
    """Put the codes, and the operator that gives back the weight, in its place."""
    value = get_tensor(captured, str(weight.parameter.target))
    shape, group_size = list(value.shape), quantized.group_size
    form, (scale, zero_point) = quantized.format, quantized.grid
    parts: Mapping[str, Tensor | None]
    rest: tuple[Any, ...]
    if isinstance(form, IntegerFormat):
        packed_zero = None if zero_point is None else pack(zero_point.to(torch.uint8), form.bits)
        parts = {"packed": pack(quantized.codes, form.bits), "scale": scale, "zero_point": packed_zero}
        operator, rest = weight_ops.dequantize_packed, (form.bits, shape, group_size)
    elif isinstance(form, CodebookFormat):
        parts = {"packed": pack(quantized.codes, form.bits), "scale": scale, "table": form.values()}
        operator, rest = weight_ops.dequantize_codebook, (shape, group_size, value.dtype)
    else:
        assert isinstance(form, Float8Format)
        parts = {"codes": quantized.codes.view(form.dtype).view(shape), "scale": scale}
        operator, rest = weight_ops.dequantize_float8, (group_size,)
    parts = {**parts, "scale": scale.to(form.scale_dtype)}
    parts = {name: None if part is None else part.to(value.device) for name, part in parts.items()}
    if quantized.input_scale is not None:
        assert weight.reader is not None
        divide_input_(captured, weight.reader, quantized.input_scale.to(value))
    replace_parameter_(captured, weight.parameter, operator, parts, rest)


def _must_be_numbers(value: Tensor, layer: str) -> None:
    if not value.isfinite().all():
        raise CaptureError(f"The weight of layer '{layer}' holds NaN or infinite values. Check the checkpoint.")
