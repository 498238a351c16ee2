"""Training: a built-in task before it has a model. It can train one, keep it, find it again, and become a Task."""

import copy
import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lighten.recover.finetune import FineTuneConfig, OnEpoch, OnStep, fine_tune
from lighten.registry import Registry
from lighten.task import Task
from lighten.tasks import cache
from lighten.tasks.samples import Samples


@dataclass(frozen=True, kw_only=True)
class Training:
    """network: initialised, not trained; it is not modified. recipe: how it is trained on train with train_loss.

    ingredients: whatever else decides the outcome (augmentation, label smoothing) as plain data; it is part of the
    checkpoint's key. loss: of the finished Task, for recovery training. The data sets: see lighten.task.Task.
    """

    name: str
    network: nn.Module
    train: Samples
    calibration: Samples
    selection: Samples
    holdout: Samples
    loss: Callable[[Tensor, Tensor], Tensor]
    train_loss: Callable[[Tensor, Tensor], Tensor]
    recipe: FineTuneConfig
    ingredients: dict[str, Any] = field(default_factory=dict)

    @property
    def checkpoint(self) -> Path:
        """Where the trained weights are, or would be, kept."""
        recipe = {
            "network": str(self.network),
            "recipe": recipe_key(self.recipe),
            "ingredients": self.ingredients,
            "data": _fingerprint(self.train),
        }
        return cache.checkpoint_path(self.name, recipe)

    def run(self, on_step: OnStep | None = None, on_epoch: OnEpoch | None = None) -> nn.Module:
        """Train a copy of network and keep its weights; see fine_tune for the callbacks and errors."""
        model = fine_tune(self.network, self.train, self.train_loss, self.recipe, on_step=on_step, on_epoch=on_epoch)
        model = _contiguous(model)
        cache.store(self.checkpoint, model.state_dict())
        return model

    def stored(self) -> nn.Module | None:
        """The network with the weights of an earlier run, or None if there was none."""
        state = cache.load(self.checkpoint)
        if state is None:
            return None
        model = _contiguous(copy.deepcopy(self.network))
        model.load_state_dict(state)
        return model.eval()

    def task(self, model: nn.Module) -> Task:
        """The finished Task around a trained model."""
        first, _ = self.holdout[0]
        return Task(
            name=self.name,
            model=model,
            example_inputs=(torch.zeros_like(first)[None],),
            calibration=self.calibration,
            selection=self.selection,
            holdout=self.holdout,
            train=self.train,
            loss=self.loss,
        )


# The settings that a checkpoint was always named by; one that came later names it only where it is in use, so that
# checkpoints of before are still found.
ALWAYS_NAMED = (
    *("epochs", "lr", "warmup", "momentum", "weight_decay", "batch_size", "seed", "grad_clip"),
    *("distill_weight", "temperature", "bfloat16", "channels_last"),
)


def recipe_key(recipe: FineTuneConfig) -> dict[str, Any]:
    """recipe as the plain data that a checkpoint is named by."""
    defaults = {field.name: field.default for field in fields(recipe)}
    return {name: value for name, value in asdict(recipe).items() if name in ALWAYS_NAMED or value != defaults[name]}


trainable: Registry[Callable[..., Training]] = Registry("trainable task")


def _contiguous(model: nn.Module) -> nn.Module:
    # A network may train in channels_last because that is faster; a `view` in a user's graph needs the plain layout.
    return model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload, no-any-return]


def _fingerprint(data: Samples) -> str:
    assert data.targets is not None
    digest = hashlib.sha256(str(list(data.inputs.shape)).encode())
    for tensor in (data.inputs, data.targets):
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()
