"""Prune gradually: a step of the schedule, fine-tuning, the next step."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from lighten.errors import ConfigError, TaskError
from lighten.graph.capture import CapturedModule
from lighten.plan import Plan
from lighten.prune.patterns import parse_pattern
from lighten.prune.schedules import ratios
from lighten.prune.verb import prune
from lighten.recover.finetune import FineTuneConfig, OnStep, fine_tune
from lighten.task import Task, batches


@dataclass(frozen=True, kw_only=True)
class PruneStep:
    """A step that pruned: number step of n_steps (from 1), the ratio reached, and the module before fine-tuning."""

    step: int
    n_steps: int
    ratio: float
    model: CapturedModule


def prune_gradually(
    task: Task,
    ratio: float,
    *,
    schedule: str = "one-shot",
    granularity: str = "channel",
    importance: str = "l2",
    fine_tuning: FineTuneConfig | None = None,
    teacher: nn.Module | None = None,
    on_step: OnStep | None = None,
    on_prune: Callable[[PruneStep], None] | None = None,
    **settings: Any,
) -> CapturedModule:
    """task's model pruned to ratio along schedule, fine-tuned after each step; the task's model is not modified.

    Single weights that a step prunes stay pruned; of channels each step takes its share of those that are left.
    fine_tuning, teacher: of each step, see fine_tune; None = not at all. settings: the others of lighten.prune.
    Criteria that look at gradients see the first training samples, as many as calibration has.
    recipe_of(plan) gives the arguments that a plan holds.

    Raises:
        ConfigError: a setting is unknown or out of range, or n:m is to be reached in several steps. TaskError: the task
        has no training data and fine_tuning is given. CaptureError: the model cannot be traced.
    """
    targets = ratios(schedule, ratio)
    own = {pattern: ratios(schedule, final) for pattern, final in (settings.pop("overrides", None) or {}).items()}
    if fine_tuning is not None and (task.train is None or task.loss is None):
        raise TaskError(f"Task '{task.name}' has no training data, so nothing can be fine-tuned. Prune without epochs.")
    structured = ":" not in granularity and granularity != "element"
    if not structured and len(targets) > 1 and parse_pattern(granularity).is_n_of_m:
        raise ConfigError(
            f"granularity='{granularity}' fixes its ratio and cannot rise to it. Use schedule='one-shot'."
        )
    model: Any = task.model
    for step, target in enumerate(targets, start=1):
        share = _share_of_the_rest if structured else _share
        model = prune(
            model,
            share(targets, step),
            granularity=granularity,
            importance=importance,
            example_inputs=task.example_inputs,
            overrides={pattern: share(path, step) for pattern, path in own.items()},
            **_data(task, granularity, importance),
            **settings,
        )
        epochs = 0 if fine_tuning is None else step * fine_tuning.epochs
        overrides = {pattern: path[step - 1] for pattern, path in own.items()}
        model.plan = replace(model.plan, ratio=target, schedule=schedule, overrides=overrides, epochs=epochs)
        if on_prune is not None:
            on_prune(PruneStep(step=step, n_steps=len(targets), ratio=target, model=model))
        if fine_tuning is not None:
            assert task.train is not None
            assert task.loss is not None
            model = fine_tune(model, task.train, task.loss, fine_tuning, teacher=teacher, on_step=on_step)
    assert isinstance(model, CapturedModule)
    return model


def recipe_of(plan: Plan) -> dict[str, Any]:
    """The arguments with which prune_gradually does again what plan says, apart from fine-tuning.

    Raises:
        ConfigError: plan prunes nothing.
    """
    if plan.granularity is None:
        raise ConfigError("This plan prunes nothing: it has no granularity. Set it, and ratio, in the plan.")
    asked = ("ratio", "schedule", "granularity", "round_to", "min_keep", "overrides", "exclude")
    recipe = {name: getattr(plan, name) for name in asked}
    chosen = {"importance": plan.importance, "scope": plan.scope}  # None where the granularity has none
    return recipe | {name: value for name, value in chosen.items() if value is not None}


def _share(path: list[float], step: int) -> float:
    return path[step - 1]


def _share_of_the_rest(path: list[float], step: int) -> float:
    reached = path[step - 2] if step > 1 else 0.0
    return 1 - (1 - path[step - 1]) / (1 - reached)


def _data(task: Task, granularity: str, importance: str) -> dict[str, Any]:
    """Calibration data where the criterion looks at any; with targets and a loss where it looks at gradients."""
    if granularity == "layer":
        return {"calibration": list(batches(task.calibration, task.batch_size))}
    from lighten.prune.importance.unit_data import unit_importance
    from lighten.prune.methods.layer_data import weight_importance

    needs = {
        getattr(entry.config, "needs", None)
        for registry in (unit_importance, weight_importance)
        for entry in registry
        if entry.name == importance
    } - {None}
    if not needs:
        return {}
    if needs == {"gradients"} and task.train is not None and task.loss is not None:
        return {"calibration": _first(task.train, len(task.calibration), task.batch_size), "loss": task.loss}  # type: ignore[arg-type]
    return {"calibration": list(batches(task.calibration, task.batch_size))}


def _first(data: Any, n: int, batch_size: int) -> list[Any]:
    from torch.utils.data import Subset

    return list(batches(Subset(data, range(min(n, len(data)))), batch_size))
