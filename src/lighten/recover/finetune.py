"""Fine-tuning: the one training loop of lighten, with knowledge distillation as an option."""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from lighten.errors import ConfigError
from lighten.recover.config import FineTuneConfig as FineTuneConfig
from lighten.recover.data import Loss, build_loader
from lighten.recover.distill import distillation_loss
from lighten.recover.optimizer import build_optimizer, learning_rate
from lighten.recover.precision import bfloat16_pays as bfloat16_pays
from lighten.recover.precision import computed, to_layout_
from lighten.recover.precision import takes_channels_last as takes_channels_last
from lighten.task import as_args


@dataclass(frozen=True, kw_only=True)
class Step:
    """One finished training step: number step of n_steps (from 1), in epoch (from 1), its batch's loss and its lr."""

    step: int
    n_steps: int
    epoch: int
    loss: float
    lr: float


OnStep = Callable[[Step], None]
BeforeStep = Callable[[int, int, nn.Module], None]
OnEpoch = Callable[[int, nn.Module], None]


def fine_tune(
    model: nn.Module,
    train: Dataset[Any],
    loss: Loss | None,
    config: FineTuneConfig,
    *,
    teacher: nn.Module | None = None,
    before_step: BeforeStep | None = None,
    on_step: OnStep | None = None,
    on_epoch: OnEpoch | None = None,
) -> nn.Module:
    """Train a copy of model on train and return it in eval mode.

    model, teacher and the state of torch's random generators are left as they are; the seed alone decides the result.

    train: map-style, of (inputs, target). A last batch that is short is left out of its epoch.
    loss: (outputs, targets) -> scalar; None = train holds inputs alone, and distill_weight is 1.
    teacher: gives logits [n, …, classes] like model's; needs distill_weight > 0.
    before_step: called with the number of finished steps, of all steps, and the module that is trained, which it may
    change in place. on_epoch: called with the number of finished epochs and the model in eval mode.

    Raises:
        ConfigError: the loss or the weights became NaN or infinite, nothing can be trained, teacher and distill_weight
            come one without the other, or there is neither a loss nor a distill_weight of 1.
        TaskError: train is empty.
    """
    _check_sources(loss, teacher, config)
    loader = build_loader(train, config)
    n_steps = config.epochs * len(loader)
    model = copy.deepcopy(model)
    teacher = None if teacher is None else copy.deepcopy(teacher).eval()
    if config.channels_last:
        for module in (model, teacher):
            if module is not None:
                to_layout_(module, torch.channels_last)
    optimizer = build_optimizer(model, config)
    with torch.random.fork_rng(), _denormals_flushed():
        torch.manual_seed(config.seed)
        step = 0
        for epoch in range(1, config.epochs + 1):
            model.train()
            for batch in loader:
                if before_step is not None:
                    before_step(step, n_steps, model)
                lr = learning_rate(step, n_steps, config)
                step += 1
                for group in optimizer.param_groups:
                    group["lr"] = lr
                total = _total(model, teacher, batch, loss, config)
                if not math.isfinite(value := total.item()):
                    raise ConfigError(_diverged(f"The loss is {value}", step, n_steps, config))
                optimizer.zero_grad()
                total.backward()
                if config.grad_clip is not None:
                    nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
                optimizer.step()
                if on_step is not None:
                    on_step(Step(step=step, n_steps=n_steps, epoch=epoch, loss=value, lr=lr))
            model.eval()
            if on_epoch is not None:
                with torch.random.fork_rng():  # watching must not change what is watched
                    on_epoch(epoch, model)
    if config.channels_last:
        to_layout_(model, torch.contiguous_format)
    if not all(bool(parameter.isfinite().all()) for parameter in model.parameters()):
        raise ConfigError(_diverged("A weight is NaN or infinite", n_steps, n_steps, config))
    return model.eval()


def _check_sources(loss: Loss | None, teacher: nn.Module | None, config: FineTuneConfig) -> None:
    weight = config.distill_weight
    if (teacher is not None) != (weight > 0):
        given = "no teacher" if teacher is None else "a teacher"
        raise ConfigError(
            f"distill_weight={weight} with {given}: distillation needs both. "
            "Give teacher= and distill_weight in (0, 1], or neither."
        )
    if loss is None and weight < 1:
        raise ConfigError(
            f"loss=None with distill_weight={weight}: without a loss the teacher is all there is to learn from. "
            "Give a loss and samples with targets, or a teacher and distill_weight=1."
        )


def _total(
    model: nn.Module, teacher: nn.Module | None, batch: Any, loss: Loss | None, config: FineTuneConfig
) -> Tensor:
    """What a step makes smaller: loss and distance to the teacher, each with its weight."""
    inputs, targets = (batch, None) if loss is None else batch
    args = as_args(inputs)
    outputs = computed(model, args, config.bfloat16)
    own = None if loss is None else loss(outputs, targets)
    if teacher is None:
        assert own is not None
        return own
    with torch.no_grad():
        wanted = computed(teacher, args, config.bfloat16)
    distance = distillation_loss(outputs, wanted, config.temperature)
    return distance if own is None else torch.lerp(own, distance, config.distill_weight)


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
