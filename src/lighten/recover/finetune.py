"""Fine-tuning: the one training loop of lighten, with knowledge distillation as an option."""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from lighten.errors import ConfigError
from lighten.recover.checkpoint import describe, resume_, write
from lighten.recover.config import FineTuneConfig as FineTuneConfig
from lighten.recover.data import Loss, build_loader
from lighten.recover.early_stop import Score, best_epoch, checked_score, has_stalled
from lighten.recover.ema import Average, averaged_
from lighten.recover.features import Observed
from lighten.recover.objective import check_sources, compared_layers, total_loss
from lighten.recover.optimizer import MakeOptimizer, Schedule, build_optimizer, set_rates_
from lighten.recover.parallel import agree_, agreed, averaging, place
from lighten.recover.precision import bfloat16_pays as bfloat16_pays
from lighten.recover.precision import takes_channels_last as takes_channels_last
from lighten.recover.precision import to_layout_
from lighten.recover.state import State
from lighten.recover.weights import copied, copy_into_


@dataclass(frozen=True, kw_only=True)
class Step:
    """One finished training step: number step of n_steps (from 1), in epoch (from 1), its batch's loss and its lr."""

    step: int
    n_steps: int
    epoch: int
    loss: float
    lr: float


OnStep = Callable[[Step], None]
BeforeStep = Callable[[int, int, nn.Module], bool | None]
OnEpoch = Callable[[int, nn.Module], None]


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """The trained model, in eval mode, and how it came about.

    scores: one for each epoch that was trained, None where it has none. best: the epoch, from 1, whose weights model
    has; None where nothing was scored, and then they are the last. stopped_early: patience ended the training.
    """

    model: nn.Module
    scores: tuple[float | None, ...]
    best: int | None
    stopped_early: bool


def fine_tune(
    model: nn.Module, train: Dataset[Any], loss: Loss | None, config: FineTuneConfig, **how: Any
) -> nn.Module:
    """The model of recover(model, train, loss, config, **how)."""
    return recover(model, train, loss, config, **how).model


def recover(
    model: nn.Module,
    train: Dataset[Any],
    loss: Loss | None,
    config: FineTuneConfig,
    *,
    teacher: nn.Module | None = None,
    optimizer: MakeOptimizer | None = None,
    schedule: Schedule | None = None,
    score: Score | None = None,
    checkpoint: Path | None = None,
    every: int | None = None,
    before_step: BeforeStep | None = None,
    on_step: OnStep | None = None,
    on_epoch: OnEpoch | None = None,
) -> Recovery:
    """Train a copy of model on train.

    model, teacher and the state of torch's random generators are left as they are; the seed alone decides the result.

    train: map-style, of (inputs, target). A last batch that is short is left out of its epoch.
    loss: (outputs, targets) -> scalar; None = train holds inputs alone, and distill_weight is 1.
    teacher: gives logits [n, …, classes] like model's, for distill_weight, and has its layers, for feature_weight.
    optimizer: makes one of the parameters to train, instead of config's; its rates are the peaks of the schedule.
    schedule: (steps done, all steps) -> factor of the peak rate, instead of the rise and the cosine.
    score: called after each epoch with the model in eval mode; the epoch with the highest is returned, see
    `selection_score`. None = the last epoch is.
    checkpoint: a file that is written after each epoch and after each `every` steps. Where it is there already,
    training goes on from it, and ends as it would have without the break; callbacks are told of what is trained now.
    What samples draw from other generators than torch's global one is not part of it.
    before_step: called with the number of finished steps, of all steps, and the module that is trained, which it may
    change in place; True = it did, and the average of the weights begins anew. on_epoch: called with the number of
    finished epochs and the model in eval mode, with its averaged weights where ema is set.

    Raises:
        ConfigError: the loss, a score or the weights became NaN, or infinite, nothing can be trained, a teacher
            and a weight for it come one without the other, there is neither a loss nor a distill_weight of 1, patience
            comes without a score or every without a checkpoint, or the checkpoint is of another training.
        TaskError: train is empty. ArtifactError: the checkpoint is damaged or cannot be written.
    """
    check_sources(loss, teacher, config)
    if score is None and config.patience is not None:
        raise ConfigError(f"patience={config.patience} without a score: give score=, or leave patience out.")
    if every is not None and (checkpoint is None or every < 1):
        raise ConfigError(f"every={every} with checkpoint={checkpoint}: it is a number of steps, and needs a file.")
    loader, batches, order = build_loader(train, config)
    n_steps = config.epochs * len(loader)
    model = copy.deepcopy(model)
    teacher = None if teacher is None else copy.deepcopy(teacher).eval()
    if config.channels_last:
        for module in (model, teacher):
            if module is not None:
                to_layout_(module, torch.channels_last)
    layers = compared_layers(model, teacher, config)
    student, shown = averaging(Observed(model, layers)), None if teacher is None else Observed(teacher, layers)
    state = State(
        model=model,
        optimizer=build_optimizer(model, config, optimizer),
        order=order,
        order_state=order.get_state(),
        average=None if config.ema is None else Average(config.ema, copied(model)),
    )
    peaks = [float(group["lr"]) for group in state.optimizer.param_groups]
    described = describe(state, config, len(train))  # type: ignore[arg-type]
    with torch.random.fork_rng(), _denormals_flushed():
        torch.manual_seed(config.seed + place()[0])  # processes drop out and augment each for itself
        if checkpoint is not None:
            resume_(checkpoint, state, described)
        while not _is_finished(state, config):
            epoch = len(state.scores) + 1
            batches.skip = state.step - (epoch - 1) * len(loader)
            model.train()
            for batch in loader:
                changed = before_step is not None and before_step(state.step, n_steps, model)
                if changed:
                    agree_(model)
                    if state.average is not None:
                        state.average.restart_(model)
                lr = set_rates_(state.optimizer, peaks, state.step, n_steps, config.warmup, schedule)
                state.step += 1
                total = total_loss(student, shown, batch, loss, config)
                if not math.isfinite(value := total.item()):
                    raise ConfigError(_diverged(f"The loss is {value}", state.step, n_steps, config))
                _update_(state, total, config)
                if on_step is not None:
                    on_step(Step(step=state.step, n_steps=n_steps, epoch=epoch, loss=value, lr=lr))
                if checkpoint is not None and every is not None and state.step % every == 0:
                    write(checkpoint, state, described)
            model.eval()
            # Watching must not change what is watched.
            with torch.random.fork_rng(), averaged_(model, state.average):
                agree_(model)
                if on_epoch is not None:
                    on_epoch(epoch, model)
                state.scores.append(agreed(None if score is None else checked_score(score, model.eval(), epoch)))
                if best_epoch(state.scores) == epoch:
                    state.best = copied(model)
            state.order_state = order.get_state()
            if checkpoint is not None:
                write(checkpoint, state, described)
    if state.best is not None:
        copy_into_(model, state.best)
    elif state.average is not None:
        copy_into_(model, state.average.tensors)
    agree_(model)
    if config.channels_last:
        to_layout_(model, torch.contiguous_format)
    if not all(bool(parameter.isfinite().all()) for parameter in model.parameters()):
        raise ConfigError(_diverged("A weight is NaN or infinite", state.step, n_steps, config))
    return Recovery(
        model=model.eval(),
        scores=tuple(state.scores),
        best=best_epoch(state.scores),
        stopped_early=_has_stalled(state, config),
    )


def _is_finished(state: State, config: FineTuneConfig) -> bool:
    return len(state.scores) == config.epochs or _has_stalled(state, config)


def _has_stalled(state: State, config: FineTuneConfig) -> bool:
    return config.patience is not None and has_stalled(state.scores, config.patience)


def _update_(state: State, total: Tensor, config: FineTuneConfig) -> None:
    state.optimizer.zero_grad()
    total.backward()
    if config.grad_clip is not None:
        nn.utils.clip_grad_norm_(state.model.parameters(), config.grad_clip)
    state.optimizer.step()
    if state.average is not None:
        state.average.update_(state.model)


def _diverged(what: str, step: int, n_steps: int, config: FineTuneConfig) -> str:
    return (
        f"{what} at step {step} of {n_steps} (lr={config.lr}): training diverged. Lower lr, for example to "
        f"{config.lr / 10:g}, or set grad_clip=1. If it is step 1, look for NaN in the training inputs."
    )


@contextmanager
def _denormals_flushed() -> Iterator[None]:
    # Once a channel is dead its momentum shrinks by 0.9 a step and after about 830 steps is denormal (below 1e-38),
    # where x86 falls back to microcode and a multiplication takes some hundred cycles instead of a few.
    was_flushing = float(torch.tensor(1e-40) * 1.0) == 0.0  # torch can set the mode but not tell it
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(was_flushing)
