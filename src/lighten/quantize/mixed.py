"""Mixed precision: bits a layer, chosen from measured sensitivities under a budget of bytes, exactly.

    table = measure(model, ("w2-g32", "w3-g32", "w4-g32", "w8"), calibration=batches)
    quantized = quantize(model, choose(table, max_bytes=200_000), example_inputs=(x,))

The sensitivity of a layer at a scheme is the change of the model's outputs when that layer alone is rounded, as a share
of their spread. That sensitivities add up is the assumption of all such methods (Dong et al., "HAWQ-V2",
arXiv:1911.03852, sec. 3.2, whose integer programme this is); the choice under it is optimal, not greedy.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import Tensor, nn

from lighten.errors import ConfigError, TaskError
from lighten.graph.capture import CapturedModule, capture, get_tensor
from lighten.graph.fold import fold_batch_norm_
from lighten.graph.replay import Replay
from lighten.quantize.formats import QuantizedWeight, format_of
from lighten.quantize.methods.config import MethodConfig
from lighten.quantize.packing import packed_length
from lighten.quantize.ranges import does_not_fit
from lighten.quantize.scheme import Scheme, parse_scheme
from lighten.quantize.verb import method_config, must_be_unquantized
from lighten.quantize.weight_only import round_weight
from lighten.quantize.weights import find_weights
from lighten.task import as_args


@dataclass(frozen=True)
class Option:
    """One layer at one scheme. size_bytes: of its codes, scales and zero points. sensitivity: see above, ≥ 0."""

    scheme: str
    size_bytes: int
    sensitivity: float


Table = dict[str, tuple[Option, ...]]


def measure(
    model: nn.Module,
    schemes: Sequence[str | Scheme],
    *,
    calibration: Iterable[Any],
    method: str | MethodConfig | None = None,
    exclude: Iterable[str] = (),
) -> Table:
    """For every layer with a weight, what each of schemes (of weights alone) would cost and save.

    One pass over calibration, and for each layer and scheme what comes after the layer again. method: one that needs no
    inputs, None = rtn. exclude: as for quantize; these layers are not in the table. model is not modified.

    Raises:
        ConfigError: a scheme has activations, or the method needs inputs. TaskError: calibration is empty or does not
        fit the model.
    """
    parsed = [parse_scheme(scheme) for scheme in schemes]
    config = method_config(method)
    must_be_unquantized(model)
    if not parsed or any(scheme.activation_bits is not None for scheme in parsed):
        raise ConfigError("Sensitivities are of weights: give schemes such as w2-g32, w4-g32, w8.")
    if config.needs_inputs or config.scales_inputs:
        raise ConfigError("Sensitivities are measured with methods that need no inputs: rtn, mse, hqq, standardized.")
    batches = [as_args(batch) for batch in calibration]
    if not batches:
        raise TaskError("Sensitivities need calibration data, and got none. Pass calibration=[batch, …].")
    captured = capture(model, batches[0])
    fold_batch_norm_(captured)
    weights, _ = find_weights(captured, exclude)
    sizes: dict[tuple[str, str], list[int]] = {}
    changes: dict[tuple[str, str], list[dict[str, Tensor]]] = {}
    for weight in weights:
        name = str(weight.parameter.target)
        value = get_tensor(captured, name).detach()
        for scheme in parsed:
            quantized = round_weight(value, format_of(scheme), scheme.group_size, config, None)
            sizes.setdefault((weight.layer, scheme.name), []).append(size_bytes(quantized))
            rounded = quantized.effective().view(value.shape).to(value)
            changes.setdefault((weight.layer, scheme.name), []).append({name: rounded})
    shares = _shares(captured, batches, changes)
    table: dict[str, list[Option]] = {}
    for (layer, scheme_name), of_weights in sizes.items():  # a layer of several weights, such as an LSTM, is one choice
        key = layer, scheme_name
        table.setdefault(layer, []).append(Option(scheme_name, sum(of_weights), sum(shares[key])))
    return {layer: tuple(options) for layer, options in table.items()}


def choose(table: Mapping[str, Sequence[Option]], max_bytes: int) -> dict[str, str]:
    """The scheme of each layer with the least sum of sensitivities whose sizes add up to max_bytes at most.

    Returns a mapping that quantize takes; "*" is the widest of the schemes, for what is not in table.

    Raises:
        ConfigError: not even the smallest options fit (the message says how many bytes they take), or table is empty.
    """
    if not table:
        raise ConfigError("There is no layer to choose for. Give the table that measure returns.")
    least = sum(min(option.size_bytes for option in options) for options in table.values())
    if least > max_bytes:
        raise ConfigError(f"max_bytes={max_bytes} cannot be met: the smallest options take {least} bytes.")
    options = [(layer, option) for layer, given in table.items() for option in given]
    cost = np.array([option.sensitivity for _, option in options])
    sizes = np.array([[float(option.size_bytes) for _, option in options]])
    one_each = np.array([[float(owner == layer) for owner, _ in options] for layer in table])
    # In units of the largest, because HiGHS takes what is below 1e-7 for zero.
    solved = milp(
        cost / max(cost.max(), np.finfo(float).tiny),
        integrality=np.ones(len(options)),
        bounds=Bounds(0, 1),
        constraints=[LinearConstraint(sizes, ub=max_bytes), LinearConstraint(one_each, lb=1, ub=1)],
        options={"mip_rel_gap": 0.0},
    )
    assert solved.success, f"the smallest options are a solution, but HiGHS says: {solved.message}"
    chosen = {layer: option.scheme for (layer, option), x in zip(options, solved.x, strict=True) if x > 0.5}
    widest = max((option for _, option in options), key=lambda option: parse_scheme(option.scheme).weight_bits)
    return {"*": widest.scheme, **chosen}


def size_bytes(quantized: QuantizedWeight) -> int:
    """Bytes that lie on disk: packed codes, scales, and packed zero points where there are any."""
    rows, columns = quantized.codes.shape
    scales = quantized.grid.scale
    total = rows * packed_length(columns, quantized.format.bits)
    total += scales.numel() * quantized.format.scale_dtype.itemsize
    if quantized.grid.zero_point is not None:
        total += rows * packed_length(scales.shape[1], quantized.format.bits)
    return int(total)


def _shares(
    captured: CapturedModule,
    batches: list[tuple[Any, ...]],
    changes: Mapping[tuple[str, str], Sequence[Mapping[str, Tensor]]],
) -> dict[tuple[str, str], list[float]]:
    """For each change the mean squared change of the outputs, as a share of their spread."""
    exact: list[Tensor] = []
    moved = {key: [0.0] * len(given) for key, given in changes.items()}
    for i, batch in enumerate(batches):
        try:
            replay = Replay(captured, batch)
            before = _side_by_side(replay.outputs())
        except Exception as error:
            raise does_not_fit(i, error) from error
        exact.append(before)
        for key, given in changes.items():
            for j, changed in enumerate(given):
                moved[key][j] += float((_side_by_side(replay.outputs(changed)) - before).double().square().sum())
    spread = max(float(torch.cat(exact).double().var(0).sum()), torch.finfo(torch.float32).tiny)
    n = sum(len(before) for before in exact)
    return {key: [total / n / spread for total in totals] for key, totals in moved.items()}


def _side_by_side(outputs: list[Tensor]) -> Tensor:
    """[n, outputs]: all floating outputs of a batch."""
    return torch.cat([out.reshape(len(out), -1).float() for out in outputs], 1)
