"""Ranges: what calibration data says about the activations of a graph, one batch in memory at a time."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, fx

from lighten.errors import TaskError
from lighten.graph.capture import CapturedModule, layer_of
from lighten.graph.capture import placeholder_values as placeholder_values
from lighten.quantize import observers  # noqa: F401  importing the package fills the registry
from lighten.registry import observer as observer_registry
from lighten.task import as_args

Ranges = dict[fx.Node, tuple[float, float]]


def observe_ranges(
    captured: CapturedModule, points: Mapping[fx.Node, int], batches: Iterable[Any], observer: str
) -> Ranges:
    """The range of every point over batches, as the observer of that name sees it; of no floats, there is none.

    points: with the bits of their codes, for observers that look at these.

    Raises:
        TaskError: a batch does not fit the model, or an activation is NaN or infinite (the message names the layer).
    """
    entry = observer_registry[observer]
    by_bits = "bits" in {field.name for field in fields(entry.config)}
    watching = {
        point: entry.function(entry.config(bits=bits) if by_bits else entry.config()) for point, bits in points.items()
    }
    seen: set[fx.Node] = set()

    def look(node: fx.Node, value: Tensor) -> None:
        if value.numel():  # between layers without channels there is nothing, and no range of it
            watching[node].observe(value)
            seen.add(node)

    watch(captured, watching, batches, look)
    return {point: observing.range() for point, observing in watching.items() if point in seen}


def watch(
    captured: CapturedModule,
    points: Iterable[fx.Node],
    batches: Iterable[Any],
    look: Callable[[fx.Node, Tensor], None],
) -> None:
    """Run captured on every batch, and show look the floats that each of points makes.

    Raises:
        TaskError: as observe_ranges.
    """
    watcher = _Watcher(captured, points, look)
    with torch.no_grad():
        for index, batch in enumerate(batches):
            must_hold_samples(index, batch)
            try:
                watcher.run(*placeholder_values(captured, as_args(batch)), enable_io_processing=False)
            except TaskError:
                raise
            except Exception as error:
                raise does_not_fit(index, error) from error


def must_hold_samples(index: int, batch: Any) -> None:
    """Raises TaskError: the calibration batch of that index has no sample."""
    for x in as_args(batch):
        if isinstance(x, Tensor) and x.ndim and len(x) == 0:
            raise TaskError(
                f"Calibration batch {index} is empty: it holds a tensor of shape {list(x.shape)}. Leave it out."
            )


def does_not_fit(index: int, error: Exception) -> TaskError:
    """What to raise when the model failed on the calibration batch of that index."""
    said = next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
    return TaskError(
        f"Calibration batch {index} does not fit the model: {said}. A batch is what the model is called with: a "
        "tensor, or a tuple of its positional arguments, without targets."
    )


class _Watcher(fx.Interpreter):
    def __init__(
        self, captured: CapturedModule, points: Iterable[fx.Node], look: Callable[[fx.Node, Tensor], None]
    ) -> None:
        super().__init__(captured)
        self.extra_traceback = False  # it would be appended to our messages
        self.points, self.look = set(points), look

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n in self.points and isinstance(value, Tensor) and value.is_floating_point():
            if not value.isfinite().all():
                what = f"input '{n.name}'" if n.op == "placeholder" else f"output of layer '{layer_of(n)}' ({n.name})"
                raise TaskError(
                    f"The {what} is NaN or infinite during calibration. Check the calibration data and the weights "
                    "up to there."
                )
            self.look(n, value)
        return value
