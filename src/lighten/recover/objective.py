"""What training makes smaller: the task's own loss, and distances to a teacher."""

from typing import Any

import torch
from torch import Tensor, nn

from lighten.errors import ConfigError
from lighten.recover.config import FineTuneConfig
from lighten.recover.data import Loss
from lighten.recover.distill import distillation_loss, feature_loss
from lighten.recover.features import can_be_observed, stages
from lighten.recover.precision import computed
from lighten.task import as_args


def check_sources(loss: Loss | None, teacher: nn.Module | None, config: FineTuneConfig) -> None:
    """See that there is something to learn from.

    Raises:
        ConfigError: a teacher and a weight for it come one without the other, or there is neither a loss nor a teacher
            that is all of it.
    """
    weight, features = config.distill_weight, config.feature_weight
    if (teacher is not None) != (weight > 0 or features > 0):
        given = "no teacher" if teacher is None else "a teacher"
        raise ConfigError(
            f"distill_weight={weight} and feature_weight={features} with {given}: distillation needs both. "
            "Give teacher= and distill_weight in (0, 1], or feature_weight above 0, or none of them."
        )
    if loss is None and weight < 1:
        raise ConfigError(
            f"loss=None with distill_weight={weight}: without a loss the teacher is all there is to learn from. "
            "Give a loss and samples with targets, or a teacher and distill_weight=1."
        )


def compared_layers(model: nn.Module, teacher: nn.Module | None, config: FineTuneConfig) -> tuple[str, ...]:
    """The layers whose values are learned; () where none are.

    Raises:
        ConfigError: none are named, and the two models have no parts in common.
    """
    if teacher is None or config.feature_weight == 0 or config.features:
        return config.features
    found = [name for name in stages(teacher) if can_be_observed(model, name) and can_be_observed(teacher, name)]
    if not found:
        raise ConfigError(
            f"feature_weight={config.feature_weight}, but {type(teacher).__name__} has no parts that the trained model "
            "has too. Name the layers to compare: features=(…)."
        )
    return tuple(found)


def total_loss(
    student: nn.Module, teacher: nn.Module | None, batch: Any, loss: Loss | None, config: FineTuneConfig
) -> Tensor:
    """What a step makes smaller: the loss and the distances to the teacher, each with its weight.

    student, teacher: called with the inputs of batch they return outputs and features, as `Observed` does.
    """
    inputs, targets = (batch, None) if loss is None else batch
    args = as_args(inputs)
    outputs, features = computed(student, args, config.bfloat16)
    own = None if loss is None else loss(outputs, targets)
    if teacher is None:
        assert own is not None
        return own
    with torch.no_grad():
        wanted, wanted_features = computed(teacher, args, config.bfloat16)
    total = own
    if config.distill_weight > 0:
        distance = distillation_loss(outputs, wanted, config.temperature)
        total = distance if own is None else torch.lerp(own, distance, config.distill_weight)
    assert total is not None
    if features:
        total = total + config.feature_weight * feature_loss(features, wanted_features)
    return total
