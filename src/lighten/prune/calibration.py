"""Calibration for single weights: what each layer reads, gathered in one pass over the data in bounded memory.

Of every layer only the sum of squares of its inputs, or X Xᵀ, is kept, whatever the number of samples. A convolution
is a linear layer over unfolded patches.
"""

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from lighten.errors import TaskError
from lighten.graph.arguments import arguments
from lighten.graph.capture import CapturedModule
from lighten.prune.layers import CONVOLUTIONS, WeightLayer
from lighten.quantize.ranges import placeholder_values
from lighten.task import as_args

CHUNK_ELEMENTS = 1 << 24  # of unfolded input in memory at once


def patches(x: Tensor, node: fx.Node, kernel: tuple[int, ...]) -> Tensor:
    """[groups, positions, in / groups · kernel]: what each output of a linear layer or convolution is made from.

    x: the input of node. kernel: the sizes of the weight after [out, in / groups].
    """
    given = arguments(node)
    if node.target not in CONVOLUTIONS:
        return x.flatten(0, -2)[None]
    spatial = CONVOLUTIONS[node.target]
    if x.ndim == spatial + 1:
        x = x[None]
    stride, dilation = _per_axis(given["stride"], spatial), _per_axis(given["dilation"], spatial)
    x = F.pad(x, _amounts(given["padding"], kernel, dilation))
    for axis in range(spatial):
        reach = (kernel[axis] - 1) * dilation[axis] + 1
        x = x.unfold(2 + axis, reach, stride[axis])[..., :: dilation[axis]]
    # Now [batch, in, *positions, *kernel].
    batch, n_in = x.shape[:2]
    groups = given["groups"]
    x = x.reshape(batch, groups, n_in // groups, -1, int(torch.Size(kernel).numel()))
    return x.permute(1, 0, 3, 2, 4).reshape(groups, -1, n_in // groups * int(torch.Size(kernel).numel()))


class InputStatistics(fx.Interpreter):
    """Runs the graph and sums what each layer reads. full: X Xᵀ, else only its diagonal."""

    def __init__(self, captured: CapturedModule, layers: list[WeightLayer], full: bool) -> None:
        super().__init__(captured)
        self.extra_traceback = False
        self.full = full
        self.of_node = {node: layer for layer in layers for node in layer.nodes}
        self.kernel = {layer.name: tuple(captured.get_parameter(layer.parameter).shape[2:]) for layer in layers}
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run one node; watch what it reads where it is a layer."""
        if n in self.of_node:
            layer = self.of_node[n]
            self._add(layer, n, self.env[arguments(n)["input"]].detach().float())
        return super().run_node(n)

    def _add(self, layer: WeightLayer, node: fx.Node, x: Tensor) -> None:
        if not x.isfinite().all():
            raise TaskError(
                f"The input of layer '{layer.name}' is NaN or infinite during calibration. Check the calibration data "
                "and the weights up to there."
            )
        kernel = self.kernel[layer.name]
        per_sample = max(1, x[:1].numel() * int(torch.Size(kernel).numel()))
        for part in x.split(max(1, CHUNK_ELEMENTS // per_sample)):
            rows = patches(part, node, kernel)
            added = (rows.mT @ rows if self.full else rows.square().sum(1)).double()
            self.sums[layer.name] = self.sums[layer.name] + added if layer.name in self.sums else added
            self.counts[layer.name] = self.counts.get(layer.name, 0) + rows.shape[1]

    def mean(self, layer: WeightLayer) -> Tensor:
        """X Xᵀ / n [groups, columns, columns] float64, or its diagonal [groups, columns]."""
        return self.sums[layer.name] / self.counts[layer.name]


def input_statistics(
    captured: CapturedModule, layers: list[WeightLayer], batches: Iterable[Any], *, full: bool
) -> dict[str, Tensor]:
    """By layer name, the mean of x xᵀ (full) or of x² over everything that the layer reads; see InputStatistics.mean.

    Raises:
        TaskError: there is no batch, one does not fit the model, or an input of a layer is NaN or infinite.
    """
    seen = InputStatistics(captured, layers, full)
    with torch.no_grad():
        for index, batch in enumerate(batches):
            try:
                seen.run(*placeholder_values(captured, as_args(batch)), enable_io_processing=False)
            except TaskError:
                raise
            except Exception as error:
                raise TaskError(misfit(index, error)) from error
    if not seen.sums:
        raise TaskError("The calibration data is empty. Pass calibration=[batch, …]; 100 to 500 samples are enough.")
    return {layer.name: seen.mean(layer) for layer in layers}


class _Reached(Exception):  # noqa: N818  not an error: the rest of the graph need not run
    pass


class _Reader(fx.Interpreter):
    """Runs the graph up to a layer and keeps what the layer reads."""

    def __init__(self, captured: CapturedModule, layer: WeightLayer) -> None:
        super().__init__(captured)
        self.extra_traceback = False
        self.wanted = {node.name for node in layer.nodes}
        self.read: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        if n.name in self.wanted:
            self.read[n.name] = self.env[arguments(n)["input"]].float()
            if len(self.read) == len(self.wanted):
                raise _Reached
        return super().run_node(n)


def paired_moments(
    dense: CapturedModule, pruned: CapturedModule, layer: WeightLayer, batches: Iterable[Any]
) -> tuple[Tensor, Tensor]:
    """X̂ X̂ᵀ / n and X X̂ᵀ / n, [groups, columns, columns] float64 each; columns of X̂, or of X and X̂.

    X is what layer reads in dense, X̂ what it reads in pruned, a copy of dense with other weights or fewer channels.
    layer: of pruned; its nodes have the same names in dense.
    """
    own, cross, count = None, None, 0
    kernel = tuple(pruned.get_parameter(layer.parameter).shape[2:])
    for batch in batches:
        values = placeholder_values(pruned, as_args(batch))
        read = []
        for module in (dense, pruned):
            reader = _Reader(module, layer)
            with torch.no_grad(), suppress(_Reached):
                reader.run(*values, enable_io_processing=False)
            read.append(reader.read)
        for node in layer.nodes:
            x, x_hat = (side[node.name] for side in read)
            size = max(1, CHUNK_ELEMENTS // max(1, x[:1].numel() * int(torch.Size(kernel).numel())))
            for part, part_hat in zip(x.split(size), x_hat.split(size), strict=True):
                rows, rows_hat = patches(part, node, kernel), patches(part_hat, node, kernel)
                added, crossed = (rows_hat.mT @ rows_hat).double(), (rows.mT @ rows_hat).double()
                own = added if own is None else own + added
                cross = crossed if cross is None else cross + crossed
                count += rows.shape[1]
    assert own is not None
    assert cross is not None
    return own / count, cross / count


def misfit(index: int, error: Exception) -> str:
    """The message for a calibration batch that the model does not take."""
    said = next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
    return (
        f"Calibration batch {index} does not fit the model: {said}. A batch is what the model is called with: a "
        "tensor, or a tuple of its positional arguments; with loss= it is a pair (inputs, target)."
    )


def _per_axis(value: Any, spatial: int) -> list[int]:
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return values * spatial if len(values) == 1 else values


def _amounts(padding: Any, kernel: tuple[int, ...], dilation: list[int]) -> list[int]:
    """For F.pad, last axis first."""
    both: list[tuple[int, int]] = []
    for axis, size in enumerate(kernel):
        if padding == "valid":
            both.append((0, 0))
        elif padding == "same":
            total = (size - 1) * dilation[axis]
            both.append((total // 2, total - total // 2))
        else:
            amount = _per_axis(padding, len(kernel))[axis]
            both.append((amount, amount))
    return [amount for pair in reversed(both) for amount in pair]
