"""EMA: the average of the weights over the last steps, which swings less than the weights themselves.

Sources: Polyak & Juditsky, "Acceleration of Stochastic Approximation by Averaging", SIAM J. Control Optim. 30 (1992);
the decay min(decay, (1 + n) / (10 + n)) after n updates, which lets go of the first weights soon, is that of
TensorFlow's ExponentialMovingAverage.
Differs: what is no floating-point number (counters, masks) is taken as it is. Statistics of batch norm are averaged.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from lighten.recover.weights import copied, copy_into_, named_tensors


@dataclass
class Average:
    """tensors: the average of a model's parameters and buffers by name, after n_updates since it began or restarted."""

    decay: float
    tensors: dict[str, Tensor]
    n_updates: int = 0

    def update_(self, model: nn.Module) -> None:
        """Take in the weights of model after a step."""
        decay = min(self.decay, (1 + self.n_updates) / (10 + self.n_updates))
        self.n_updates += 1
        for name, tensor in named_tensors(model).items():
            if name in self.tensors and tensor.is_floating_point():
                self.tensors[name].lerp_(tensor, 1 - decay)
            else:
                self.tensors[name] = tensor.clone()

    def restart_(self, model: nn.Module) -> None:
        """Begin again at the weights of model: what was before is of another model."""
        self.tensors, self.n_updates = copied(model), 0


@contextmanager
def averaged_(model: nn.Module, average: Average | None) -> Iterator[None]:
    """Within, model has the average's weights; without an average its own."""
    if average is None:
        yield
        return
    own = copied(model)
    copy_into_(model, average.tensors)
    try:
        yield
    finally:
        copy_into_(model, own)
