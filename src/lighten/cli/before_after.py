"""What commands that change a network say of it: the metric before and after on selection and holdout data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table

if TYPE_CHECKING:
    from torch import nn

    from lighten.metric import Scores
    from lighten.task import Task

PARTS = ("selection", "holdout")


def score_both_(result: dict[str, Any], task: Task, after: nn.Module) -> None:
    """Enter the metric of task's model into result["before"], that of after into result["after"], and the drops."""
    from lighten.metric import paired_drop
    from lighten.task import evaluate

    for name in PARTS:
        samples = getattr(task, name)
        old, new = (evaluate(model, samples, task.metric, task.batch_size) for model in (task.model, after))
        drop = paired_drop(old, new)
        result["before"][name], result["after"][name] = _metric(old), _metric(new)
        result[f"drop_{name}"] = {"value": drop.value, "ci95": [drop.low, drop.high]}


def _metric(scores: Scores) -> dict[str, Any]:
    interval = scores.interval
    return {
        "name": scores.metric.name,
        "value": interval.value,
        "ci95": [interval.low, interval.high],
        "n": scores.n,
    }


def table_of_both(title: str, result: dict[str, Any]) -> Table:
    """A table with the rows of score_both_; further rows are (what, before, after, change)."""
    drawn = Table(title=title, title_justify="left")
    for column in ("", "before", "after", "change"):
        drawn.add_column(column, justify="left" if not column else "right", no_wrap=True)
    for name in PARTS:
        old, new, drop = result["before"][name], result["after"][name], result[f"drop_{name}"]
        drawn.add_row(
            f"{old['name']}, {name}\n{old['n']} samples",
            *(f"{m['value']:.4f}\n{m['ci95'][0]:.3f} to {m['ci95'][1]:.3f}" for m in (old, new)),
            f"drop {drop['value']:+.4f}\n{drop['ci95'][0]:+.3f} to {drop['ci95'][1]:+.3f}",
        )
    return drawn
