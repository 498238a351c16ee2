"""The verb `quantize`: it checks what was asked for and hands the work to the engine of the scheme."""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lighten.errors import CaptureError, ConfigError, TaskError
from lighten.graph.capture import CapturedModule, capture
from lighten.quantize import methods as _methods  # noqa: F401  importing the package fills the registry
from lighten.quantize.assignment import Assignment, SchemeLike, parse_assignment
from lighten.quantize.dynamic import DynamicRequest, quantize_dynamic
from lighten.quantize.methods.config import MethodConfig
from lighten.quantize.methods.rtn import RTNConfig
from lighten.quantize.progress import OnProgress, silent
from lighten.quantize.scheme import Scheme, check_weight_bits
from lighten.quantize.static import StaticRequest, quantize_static
from lighten.quantize.steps import check_steps
from lighten.quantize.weight_only import entry_of, quantize_weights
from lighten.registry import quantizer
from lighten.task import as_args

DEFAULT_OBSERVER = "mse"


def quantize(
    model: nn.Module,
    scheme: SchemeLike,
    *,
    method: str | MethodConfig | None = None,
    calibration: Iterable[Any] | None = None,
    example_inputs: tuple[Any, ...] | None = None,
    exclude: Iterable[str] = (),
    observer: str | None = None,
    weight_bits: int | None = None,
    steps: str | Iterable[str] = (),
    on_progress: OnProgress = silent,
) -> CapturedModule:
    """A quantized copy of model; model itself is not modified.

    scheme: "w8a8", "w4-g128", …, see lighten.quantize.scheme; "w4-g128; head=w8" or a mapping where layers get
    different ones, see lighten.quantize.assignment. method: how weights are rounded: a name, or its config
    where settings differ from the defaults; None = to nearest. calibration: batches of inputs (a tensor, or a tuple of
    tensors), for the ranges of activations and for methods that look at inputs. example_inputs: positional arguments
    of model; None = the first calibration batch. exclude: shell patterns over module names that stay float. observer:
    how ranges are chosen, None = by least squared error. weight_bits: where activations are integers, no weight's code
    is wider; None = as the scheme says, but 7 where this CPU's 8-bit products saturate (the plan says so; see
    lighten.runtime.cpu.int8_saturates). steps: of "equalization", "smoothquant" and
    "bias-correction" those that the float network goes through before (see lighten.quantize.steps). on_progress: told
    what is done next. What was quantized and what was left alone is in the result's `plan`.

    Raises:
        ConfigError: a setting is unknown or has no meaning here, or model is quantized already. TaskError: the
        calibration data is missing, does not fit the model, or holds NaN. CaptureError: see capture; or a parameter
        is NaN, infinite or on the meta device, or activations are to be integers and model is not float32.
    """
    chosen, config, asked = parse_assignment(scheme), method_config(method), check_steps(steps)
    must_be_unquantized(model)
    must_hold_numbers(model)
    if chosen.default.activation_bits is None or chosen.default.dynamic:
        run = _weights_alone if chosen.default.activation_bits is None else _at_run_time
        data = calibration, example_inputs, exclude
        return run(model, chosen, config, *data, observer, weight_bits, asked, on_progress)
    captured, request = static_request(
        model,
        chosen,
        method=config,
        calibration=calibration,
        example_inputs=example_inputs,
        exclude=exclude,
        observer=observer,
        weight_bits=weight_bits,
        steps=asked,
        on_progress=on_progress,
    )
    quantize_static(captured, request)
    return captured


def static_request(
    model: nn.Module,
    assignment: Assignment,
    *,
    method: MethodConfig,
    calibration: Iterable[Any] | None,
    example_inputs: tuple[Any, ...] | None,
    exclude: Iterable[str],
    observer: str | None,
    weight_bits: int | None,
    steps: tuple[str, ...],
    on_progress: OnProgress = silent,
) -> tuple[CapturedModule, StaticRequest]:
    """model captured, and what is asked for, checked; arguments and errors as of quantize."""
    must_hold_numbers(model)
    _must_suit_kernels(assignment, method, weight_bits)
    first, batches = _peek(calibration, f"{assignment.name} needs calibration data to find the ranges of activations")
    inputs = as_args(first) if example_inputs is None else example_inputs
    _must_be_float32(model, inputs)
    bits, because = _bits_here(assignment, weight_bits)
    on_progress("tracing the model")
    return capture(model, inputs), StaticRequest(
        assignment=assignment,
        bits=bits,
        bits_because=because,
        on_progress=on_progress,
        batches=batches,
        example_inputs=inputs,
        observer=DEFAULT_OBSERVER if observer is None else observer,
        exclude=tuple(exclude),
        method=method,
        steps=steps,
    )


def _at_run_time(
    model: nn.Module,
    assignment: Assignment,
    config: MethodConfig,
    calibration: Iterable[Any] | None,
    example_inputs: tuple[Any, ...] | None,
    exclude: Iterable[str],
    observer: str | None,
    weight_bits: int | None,
    steps: tuple[str, ...],
    on_progress: OnProgress,
) -> CapturedModule:
    _must_not_be_given(f"{assignment.name}, whose ranges are found later", observer=observer, steps=steps)
    _must_suit_kernels(assignment, config, weight_bits)
    inputs, batches = _inputs_and_batches(assignment, config, calibration, example_inputs)
    _must_be_float32(model, inputs)
    bits, because = _bits_here(assignment, weight_bits)
    on_progress("tracing the model")
    captured = capture(model, inputs)
    request = DynamicRequest(
        assignment=assignment,
        bits=bits,
        bits_because=because,
        method=config,
        batches=batches,
        exclude=tuple(exclude),
        on_progress=on_progress,
    )
    quantize_dynamic(captured, request)
    return captured


def must_be_unquantized(model: nn.Module) -> None:
    """Raises ConfigError: model is quantized already."""
    if isinstance(model, CapturedModule) and model.plan.scheme is not None:
        raise ConfigError(f"The model is quantized already, to {model.plan.scheme}. Quantize the float model instead.")


def must_hold_numbers(model: nn.Module) -> None:
    """Raises CaptureError: a parameter is on the meta device, NaN or infinite; its layer is named."""
    for name, value in model.named_parameters():
        layer, _, leaf = name.rpartition(".")
        if value.is_meta:
            raise CaptureError(f"The {leaf} of layer '{layer}' is on the meta device. Load the checkpoint first.")
        if not value.isfinite().all():
            raise CaptureError(f"The {leaf} of layer '{layer}' holds NaN or infinite values. Check the checkpoint.")


def _bits_here(assignment: Assignment, weight_bits: int | None) -> tuple[int | None, str | None]:
    """The bits that no weight's code may exceed, and why where the CPU of this machine decides that."""
    from lighten.runtime.cpu import int8_saturates, this_cpu  # stands to the right of this package

    if weight_bits is not None or all(scheme.weight_bits < 8 for scheme in assignment.schemes):
        return weight_bits, None
    cpu = this_cpu()
    if not int8_saturates(cpu):
        return None, None
    return 7, (
        f"{cpu.name}, on which they were made, has no VNNI: it adds products of 8-bit codes in pairs in 16 bits, "
        "which saturate"
    )


def _weights_alone(
    model: nn.Module,
    assignment: Assignment,
    config: MethodConfig,
    calibration: Iterable[Any] | None,
    example_inputs: tuple[Any, ...] | None,
    exclude: Iterable[str],
    observer: str | None,
    weight_bits: int | None,
    steps: tuple[str, ...],
    on_progress: OnProgress,
) -> CapturedModule:
    why = f"{assignment.name}, which leaves activations alone"
    of_activations = tuple(step for step in steps if step == "smoothquant")
    _must_not_be_given(why, observer=observer, weight_bits=weight_bits, steps=of_activations)
    inputs, batches = _inputs_and_batches(assignment, config, calibration, example_inputs, steps)
    on_progress("tracing the model")
    captured = capture(model, inputs)
    quantize_weights(captured, assignment, config, batches, exclude, steps, on_progress)
    return captured


def _must_not_be_given(what: str, **settings: Any) -> None:
    for name, value in settings.items():
        if value not in (None, ()):
            raise ConfigError(f"{name}={value!r} has no meaning for {what}.")


def _must_suit_kernels(assignment: Assignment, config: MethodConfig, weight_bits: int | None) -> None:
    if weight_bits is not None:
        check_weight_bits(weight_bits, max(scheme.weight_bits for scheme in assignment.schemes))
    for scheme in assignment.schemes:
        _must_round_for_kernels(config, scheme)


def _must_round_for_kernels(config: MethodConfig, scheme: Scheme) -> None:
    """Kernels take symmetric codes with one scale a channel, and their inputs as they are."""
    name = entry_of(config).name
    if config.scales_inputs:
        raise ConfigError(f"The method {name} scales inputs, which {scheme.name} fixes. Use steps='smoothquant'.")
    if scheme.per_tensor and not isinstance(config, RTNConfig):
        raise ConfigError(f"The method {name} keeps one scale a channel. Drop -tensor from {scheme.name}, or use rtn.")


def method_config(method: str | MethodConfig | None) -> MethodConfig:
    """The config that method names, or is."""
    if isinstance(method, MethodConfig):
        return method
    config: MethodConfig = quantizer["rtn" if method is None else method].config()
    return config


def _inputs_and_batches(
    assignment: Assignment,
    config: MethodConfig,
    calibration: Iterable[Any] | None,
    example_inputs: tuple[Any, ...] | None,
    steps: tuple[str, ...] = (),
) -> tuple[tuple[Any, ...], Iterable[Any]]:
    """What the model is traced with, and the batches that config and steps read; without need, none are."""
    corrects = "bias-correction" in steps
    if example_inputs is not None and not config.needs_inputs and not corrects:
        return example_inputs, ()
    why = f"{assignment.name} needs example_inputs, or calibration data, to trace the model"
    if corrects:
        why = "bias-correction looks at activations"
    if config.needs_inputs:
        why = f"{entry_of(config).name} looks at the inputs of layers"
    first, batches = _peek(calibration, why)
    return as_args(first) if example_inputs is None else example_inputs, batches


def _peek(calibration: Iterable[Any] | None, why: str) -> tuple[Any, Iterator[Any]]:
    """The first batch, and all of them: one at a time, they need not fit into memory together."""
    if isinstance(calibration, Tensor):
        raise TaskError("calibration is a tensor, but must be a list of batches. Pass calibration=[batch, …].")
    batches = iter(() if calibration is None else calibration)
    for first in batches:
        return first, itertools.chain([first], batches)
    raise TaskError(f"{why}, and got none. Pass calibration=[batch, …]; 100 to 500 typical samples are enough.")


def _must_be_float32(model: nn.Module, inputs: tuple[Any, ...]) -> None:
    tensors = itertools.chain(model.parameters(), model.buffers(), pytree.tree_leaves(inputs))
    for tensor in tensors:
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise CaptureError(
                f"The model or its input is {tensor.dtype}, and integer kernels are fed from float32. "
                "Quantize model.float(), with inputs converted by .float()."
            )
