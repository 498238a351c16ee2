"""The settings of fine-tuning."""

import math
from dataclasses import dataclass
from typing import Any

from lighten.errors import ConfigError

OPTIMIZERS = ("sgd", "adamw")


@dataclass(frozen=True, kw_only=True)
class FineTuneConfig:
    """optimizer: sgd, with Nesterov momentum, or adamw; FineTuneConfig.adamw() sets the rest to suit the latter.

    lr: the peak of the schedule. warmup: share of the steps that lead up to it. seed: of shuffling and dropout.
    momentum: of sgd, and the first beta of adamw.
    weight_decay: on matrices and filters only. grad_clip: largest norm of a step's gradient, None = any.
    distill_weight: share of the loss that is the distance to a teacher's logits, the rest is the task's own loss.
    temperature: softens both sides of that distance.
    feature_weight: of the distance to what the teacher's layers make, added to the loss, for example 1; see
    `similarity_loss`. features: the layers, by module path; () = the stages of the teacher, see `stages`.
    bfloat16: matrix products in bfloat16 (torch's autocast), weights and their updates in float32. It halves the time
    of a step where the device computes in bfloat16, see `bfloat16_pays`, and multiplies it elsewhere. channels_last:
    train convolutions in that memory layout, see `takes_channels_last`; the result is in the usual one.
    ema: decay of the average of the weights that is scored and returned in their place, for example 0.99; None = off.
    patience: epochs without a better score after which training ends, None = it never ends early.
    """

    epochs: int = 1
    lr: float = 0.05
    warmup: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch_size: int = 128
    seed: int = 0
    grad_clip: float | None = None
    distill_weight: float = 0.0
    temperature: float = 4.0
    bfloat16: bool = False
    channels_last: bool = False
    ema: float | None = None
    patience: int | None = None
    optimizer: str = "sgd"
    feature_weight: float = 0.0
    features: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        allowed = {
            "optimizer": (self.optimizer in OPTIMIZERS, f"one of {', '.join(OPTIMIZERS)}"),
            "epochs": (self.epochs >= 1, "1 or more"),
            "lr": (0 < self.lr < math.inf, "above 0, for example 0.05"),
            "warmup": (0 <= self.warmup < 1, "in [0, 1), for example 0.1"),
            "momentum": (0 < self.momentum < 1, "in (0, 1), for example 0.9"),
            "weight_decay": (0 <= self.weight_decay < math.inf, "0 or more, for example 5e-4"),
            "batch_size": (self.batch_size >= 1, "1 or more"),
            "grad_clip": (self.grad_clip is None or self.grad_clip > 0, "above 0, or None for no limit"),
            "distill_weight": (0 <= self.distill_weight <= 1, "in [0, 1], for example 0.5"),
            "ema": (self.ema is None or 0 < self.ema < 1, "in (0, 1), for example 0.99, or None"),
            "patience": (self.patience is None or self.patience >= 1, "1 or more, or None for all epochs"),
            "feature_weight": (0 <= self.feature_weight < math.inf, "0 or more, for example 1"),
            "features": (not self.features or self.feature_weight > 0, "() where feature_weight is 0"),
            "temperature": (0 < self.temperature < math.inf, "above 0, for example 4"),
        }
        for name, (fits, range_) in allowed.items():
            if not fits:
                raise ConfigError(f"{name}={getattr(self, name)} cannot be used for fine-tuning. Choose it {range_}.")

    @classmethod
    def adamw(cls, **changes: Any) -> "FineTuneConfig":
        """Settings that suit transformers, with these changes.

        Their layers have gradients of very different sizes, which one rate of sgd does not serve. The decay is that of
        Touvron et al., arXiv:2012.12877; the rate is lower than theirs, since what is recovered was trained before.
        """
        suited: dict[str, Any] = {"optimizer": "adamw", "lr": 2e-4, "weight_decay": 0.05, "grad_clip": 1.0}
        return cls(**suited | changes)
