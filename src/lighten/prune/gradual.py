"""Prune gradually: a step of the schedule, fine-tuning, the next step; or all steps within one fine-tuning."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lighten.errors import ConfigError, TaskError
from lighten.graph.capture import CapturedModule
from lighten.plan import Plan
from lighten.prune.masks import MaskedModule, mask_weights, masks
from lighten.prune.patterns import parse_pattern
from lighten.prune.schedules import ratios, rises_within_training
from lighten.prune.verb import prune
from lighten.recover.data import recovery_data
from lighten.recover.early_stop import Score
from lighten.recover.finetune import BeforeStep, FineTuneConfig, OnStep, fine_tune
from lighten.task import Task, batches

# `gradual:n` reaches its ratio at this share of the training steps; the rest trains what is left.
RISE = 0.6


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
    refit: bool = False,
    fine_tuning: FineTuneConfig | None = None,
    teacher: nn.Module | None = None,
    score: Score | None = None,
    checkpoints: Path | None = None,
    every: int | None = None,
    on_step: OnStep | None = None,
    on_prune: Callable[[PruneStep], None] | None = None,
    **settings: Any,
) -> CapturedModule:
    """task's model pruned to ratio along schedule, fine-tuned after each step; the task's model is not modified.

    Single weights that a step prunes stay pruned, except that methods which move the others, as sparsegpt does, choose
    anew. Of channels each step takes its share of those that are left.
    fine_tuning, teacher: after each step, or, where the schedule rises within training, once; see fine_tune. None = not
    at all. A task without training data is fine-tuned on its calibration inputs, by a teacher alone, with
    distill_weight=1. score: chooses the best epoch of each fine-tuning, of one within which the ratio rises only among
    those that end with the whole ratio; see recover. checkpoints: a folder for one of each fine-tuning, written after
    each epoch and each `every` steps, and gone on from. settings: the others of lighten.prune.
    Criteria that look at gradients see the first training samples, as many as calibration has.
    recipe_of(plan) gives the arguments that a plan holds.

    Raises:
        ConfigError: a setting is unknown or out of range, or n:m is to be reached in several steps, or channels within
        training. TaskError: the task has no training data, and fine_tuning is given without a teacher that can do
        without. CaptureError: the model cannot be traced.
    """
    targets = ratios(schedule, ratio)
    own = {pattern: ratios(schedule, final) for pattern, final in (settings.pop("overrides", None) or {}).items()}
    if fine_tuning is not None and task.train is None and (teacher is None or fine_tuning.distill_weight < 1):
        raise TaskError(
            f"Task '{task.name}' has no training data, so only a teacher can fine-tune it, on its calibration inputs. "
            "Give teacher= and distill_weight=1, or prune without epochs."
        )
    structured = ":" not in granularity and granularity != "element"
    if not structured and len(targets) > 1 and parse_pattern(granularity).is_n_of_m:
        raise ConfigError(
            f"granularity='{granularity}' fixes its ratio and cannot rise to it. Use schedule='one-shot'."
        )
    within = rises_within_training(schedule)
    if within and (structured or fine_tuning is None):
        raise ConfigError(
            f"schedule='{schedule}' prunes single weights while they are fine-tuned, and cannot be used "
            + (f"with granularity='{granularity}'. Use cubic:n." if structured else "without it. Give it epochs.")
        )
    share = _share_of_the_rest if structured else _share

    def prune_to(step: int, model: nn.Module) -> CapturedModule:
        pruned = prune(
            model,
            share(targets, step),
            granularity=granularity,
            importance=importance,
            example_inputs=task.example_inputs,
            overrides={pattern: share(path, step) for pattern, path in own.items()},
            **_data(task, granularity, importance, refit),
            refit=refit,
            **settings,
        )
        runs = 1 if within else step
        pruned.plan = replace(
            pruned.plan,
            ratio=targets[step - 1],
            schedule=schedule,
            overrides={pattern: path[step - 1] for pattern, path in own.items()},
            epochs=0 if fine_tuning is None else runs * fine_tuning.epochs,
        )
        if on_prune is not None:
            on_prune(PruneStep(step=step, n_steps=len(targets), ratio=targets[step - 1], model=pruned))
        return pruned

    def complete(model: nn.Module) -> float | None:
        assert score is not None
        assert isinstance(model, CapturedModule)
        return score(model) if not within or model.plan.ratio == targets[-1] else None

    def tune(step: int, model: CapturedModule, before_step: BeforeStep | None = None) -> CapturedModule:
        if fine_tuning is None:
            return model
        train, loss, _ = recovery_data(task)
        tuned = fine_tune(
            model,
            train,
            loss,
            fine_tuning,
            teacher=teacher,
            score=None if score is None else complete,
            checkpoint=None if checkpoints is None else checkpoints / f"step-{step}.safetensors",
            every=every,
            before_step=before_step,
            on_step=on_step,
        )
        assert isinstance(tuned, CapturedModule)
        if isinstance(tuned, MaskedModule):
            tuned.hold_()  # momentum of before a pruning moves what it pruned, in the last step too
        return tuned

    model = prune_to(1, task.model)
    if within:
        return tune(1, model, _rise(len(targets), prune_to))
    for step in range(2, len(targets) + 1):
        model = prune_to(step, tune(step - 1, model))
    return tune(len(targets), model)


def _rise(n_prunings: int, prune_to: Callable[[int, nn.Module], CapturedModule]) -> BeforeStep:
    """What prunes the module that is trained, again and again; the first pruning came before."""

    def due(done: int, n_steps: int) -> int:
        return min(n_prunings, 1 + int(n_prunings * done / (RISE * n_steps)))

    def before_step(done: int, n_steps: int, trained: nn.Module) -> bool:
        # By the number of steps alone, so that a training that goes on from a checkpoint prunes when it would have.
        if done == 0 or due(done, n_steps) == due(done - 1, n_steps):
            return False
        assert isinstance(trained, CapturedModule)
        trained.eval()
        pruned = prune_to(due(done, n_steps), trained)
        trained.train()
        with torch.no_grad():  # some methods change the weights that they leave
            for ours, theirs in zip(trained.parameters(), pruned.parameters(), strict=True):
                ours.copy_(theirs)
        mask_weights(trained, masks(pruned)).plan = pruned.plan
        return True

    return before_step


def recipe_of(plan: Plan) -> dict[str, Any]:
    """The arguments with which prune_gradually does again what plan says, apart from fine-tuning.

    Raises:
        ConfigError: plan prunes nothing.
    """
    if plan.granularity is None:
        raise ConfigError("This plan prunes nothing: it has no granularity. Set it, and ratio, in the plan.")
    asked = ("ratio", "schedule", "granularity", "round_to", "min_keep", "overrides", "exclude", "refit")
    recipe = {name: getattr(plan, name) for name in asked}
    chosen = {"importance": plan.importance, "scope": plan.scope}  # None where the granularity has none
    return recipe | {name: value for name, value in chosen.items() if value is not None}


def _share(path: list[float], step: int) -> float:
    return path[step - 1]


def _share_of_the_rest(path: list[float], step: int) -> float:
    reached = path[step - 2] if step > 1 else 0.0
    return 1 - (1 - path[step - 1]) / (1 - reached)


def _data(task: Task, granularity: str, importance: str, refit: bool) -> dict[str, Any]:
    """Calibration data where anything looks at it; with targets and a loss where the criterion looks at gradients."""
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
    if not needs and not refit:
        return {}
    if needs == {"gradients"} and task.train is not None and task.loss is not None:
        return {"calibration": _first(task.train, len(task.calibration), task.batch_size), "loss": task.loss}  # type: ignore[arg-type]
    return {"calibration": list(batches(task.calibration, task.batch_size))}


def _first(data: Any, n: int, batch_size: int) -> list[Any]:
    from torch.utils.data import Subset

    return list(batches(Subset(data, range(min(n, len(data)))), batch_size))
