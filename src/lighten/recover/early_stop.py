"""Early stop: keep the epoch that does best on selection data, and end once nothing better comes.

Source: Prechelt, "Early Stopping - But When?", in "Neural Networks: Tricks of the Trade", 1998.
"""

import math
from collections.abc import Callable, Sequence

from torch import nn

from lighten.errors import ConfigError
from lighten.task import Task, evaluate

# What a model is worth, higher is better; None = what it is now may not be chosen.
Score = Callable[[nn.Module], float | None]


def selection_score(task: Task) -> Score:
    """The score by task's metric on its selection data, with its sign turned where lower is better."""
    sign = 1 if task.metric.higher_is_better else -1
    return lambda model: sign * evaluate(model, task.selection, task.metric, task.batch_size).interval.value


def best_epoch(scores: Sequence[float | None]) -> int | None:
    """The first epoch, from 1, with the highest of scores, one an epoch; None where there is no score."""
    known = [score for score in scores if score is not None]
    return scores.index(max(known)) + 1 if known else None


def has_stalled(scores: Sequence[float | None], patience: int) -> bool:
    """Whether the last `patience` epochs with a score were no better than the best before them."""
    known = [score for score in scores if score is not None]
    return len(known) > patience and max(known[-patience:]) <= max(known[:-patience])


def checked_score(score: Score, model: nn.Module, epoch: int) -> float | None:
    """What score says of model.

    Raises:
        ConfigError: it says NaN, which is neither better nor worse than anything.
    """
    value = score(model)
    if value is not None and math.isnan(value):
        raise ConfigError(f"The score after epoch {epoch} is NaN. Return a number, or None where there is no score.")
    return value
