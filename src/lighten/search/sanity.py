"""Sanity: what has to be so before a search can mean anything, and what makes two searches the same one."""

import hashlib
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from lighten.errors import TaskError
from lighten.search.config import SearchConfig
from lighten.task import Task, as_args, batches

MAY_DIFFER = ("time_limit_s", "max_trials")  # between a search and its resumption


def check_metric(task: Task) -> None:
    """Score the first selection batch in several ways that must, or must not, agree.

    Raises:
        TaskError: the model or the metric gives other values the second time, or the metric does not look at the
        outputs.
    """
    inputs, targets = next(batches(task.selection, task.batch_size))
    task.model.eval()
    with torch.no_grad():
        outputs, again = (task.model(*as_args(inputs)) for _ in range(2))
        if not _same(outputs, again):
            raise TaskError(
                f"The model of task '{task.name}' gives other outputs for the same inputs the second time, in eval "
                "mode: no drop can be told from that. Remove what is random, or seed it in forward."
            )
        values = [torch.as_tensor(task.metric.function(outputs, targets)) for _ in range(2)]
        if not _same(values[0], values[1]):
            raise TaskError(
                f"Metric '{task.metric.name}' gives other values for the same outputs the second time: no drop can be "
                "told from that. Seed it, or draw once and keep what was drawn."
            )
        if not values[0].isfinite().all():
            raise TaskError(
                f"Metric '{task.metric.name}' is NaN or infinite for the original's outputs on the first "
                f"{len(targets)} selection samples. Mend the metric, or the samples, first."
            )
        noise = torch.Generator().manual_seed(0)

        def other(x: Tensor) -> Tensor:
            if x.is_floating_point():
                return torch.randn(x.shape, generator=noise).to(x.dtype) * 10
            return x.flip(0)

        try:
            of_others = [
                torch.as_tensor(task.metric.function(tree_map_only(Tensor, change, outputs), targets))
                for change in (other, torch.neg, other)
            ]
        except (RuntimeError, ValueError, IndexError):
            return  # a metric may refuse outputs that no model of the task would give
    if all(_same(values[0], value) for value in of_others):
        raise TaskError(
            f"Metric '{task.metric.name}' is {float(values[0].float().mean()):g} for the model's outputs, for their "
            "negatives and for noise alike: it does not look at the outputs, so everything would be within the budget."
        )


def gives_logits(task: Task) -> bool:
    """Whether the model gives one tensor [n, …, classes] where targets [n, …] are whole numbers."""
    inputs, targets = next(batches(task.selection, task.batch_size))
    if not isinstance(targets, Tensor) or targets.is_floating_point():
        return False
    with torch.no_grad():
        outputs = task.model.eval()(*as_args(inputs))
    return isinstance(outputs, Tensor) and outputs.is_floating_point() and outputs.shape[:-1] == targets.shape


def fingerprint(task: Task, config: SearchConfig) -> dict[str, Any]:
    """What a search must have in common with the one it goes on with."""
    digest = hashlib.sha256()
    for name, tensor in task.model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    settings = {name: value for name, value in asdict(config).items() if name not in MAY_DIFFER}
    return {"weights": digest.hexdigest()[:24], **settings}


def _same(one: Any, other: Any) -> bool:
    pairs = list(zip(tree_leaves(one), tree_leaves(other), strict=True))
    return all(torch.equal(a.nan_to_num(), b.nan_to_num()) if isinstance(a, Tensor) else a == b for a, b in pairs)
