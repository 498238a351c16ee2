"""Gradients, a sample at a time: of the loss, or without one of a random mix of the outputs.

The square of a batch's mean gradient is not the mean of the samples' squares, and the second is what the empirical
Fisher information needs; so samples run one by one where the model allows it.
Without a loss the mean square of the gradient of Σ ±output, with random signs, is the diagonal of Jᵀ J: how much the
outputs themselves move. Source: Hutchinson's estimator (1990).
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from lighten.errors import TaskError
from lighten.graph.capture import CapturedModule, get_tensor
from lighten.prune.calibration import misfit
from lighten.task import as_args

Loss = Callable[[Any, Any], Tensor]


def sample_gradients(
    captured: CapturedModule, names: list[str], batches: Iterable[Any], loss: Loss | None
) -> Iterator[dict[str, Tensor]]:
    """For each sample (each batch, where the model's batch size is fixed) the gradient of the parameters of names.

    batches: of inputs, or of (inputs, target) where there is a loss. captured is not modified.

    Raises:
        TaskError: there is no batch, one does not fit, or a gradient is NaN or infinite.
    """
    parameters = [get_tensor(captured, name) for name in names]
    trained = [parameter.requires_grad for parameter in parameters]
    generator = torch.Generator().manual_seed(0)
    seen = 0
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        for index, batch in enumerate(batches):
            for inputs, target in _samples(captured, batch, loss):
                try:
                    with torch.enable_grad():
                        outputs = captured(*as_args(inputs))
                        value = _probe(outputs, generator) if loss is None else loss(outputs, target)
                        gradients = torch.autograd.grad(value, parameters, materialize_grads=True)
                except Exception as error:
                    raise TaskError(misfit(index, error)) from error
                if not all(bool(gradient.isfinite().all()) for gradient in gradients):
                    raise TaskError(f"A gradient is NaN or infinite on calibration batch {index}. Check data and loss.")
                seen += 1
                yield dict(zip(names, gradients, strict=True))
    finally:
        for parameter, was_trained in zip(parameters, trained, strict=True):
            parameter.requires_grad_(was_trained)
    if not seen:
        raise TaskError("The calibration data is empty. Pass calibration=[batch, …]; 100 to 500 samples are enough.")


def mean_gradients(
    captured: CapturedModule, names: list[str], batches: Iterable[Any], loss: Loss | None
) -> dict[str, tuple[Tensor, Tensor]]:
    """By parameter, the mean of the samples' gradients and of their squares (the empirical Fisher diagonal)."""
    sums: dict[str, tuple[Tensor, Tensor]] = {}
    count = 0
    for gradients in sample_gradients(captured, names, batches, loss):
        count += 1
        for name, gradient in gradients.items():
            gradient = gradient.float()
            before = sums.get(name, (torch.zeros_like(gradient), torch.zeros_like(gradient)))
            sums[name] = before[0] + gradient, before[1] + gradient.square()
    return {name: (first / count, second / count) for name, (first, second) in sums.items()}


def _samples(captured: CapturedModule, batch: Any, loss: Loss | None) -> Iterator[tuple[Any, Any]]:
    inputs, target = (batch, None) if loss is None else batch
    sizes = {leaf.shape[0] for leaf in pytree.tree_leaves((inputs, target)) if isinstance(leaf, Tensor) and leaf.ndim}
    if not captured.batch_is_dynamic or len(sizes) != 1:
        yield inputs, target
        return
    for i in range(sizes.pop()):
        yield pytree.tree_map(partial(_one, index=i), (inputs, target))


def _one(leaf: Any, index: int) -> Any:
    return leaf[index : index + 1] if isinstance(leaf, Tensor) and leaf.ndim else leaf


def _probe(outputs: Any, generator: torch.Generator) -> Tensor:
    """Σ ±output over everything that the model returns."""
    total = torch.zeros(())
    for leaf in pytree.tree_leaves(outputs):
        if isinstance(leaf, Tensor) and leaf.is_floating_point():
            signs = torch.randint(2, leaf.shape, generator=generator).to(leaf.dtype) * 2 - 1
            total = total + (leaf * signs).sum()
    return total
