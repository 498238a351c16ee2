"""Min-max: the whole range that was seen. Clips nothing, and pays for outliers with coarser steps."""

from dataclasses import dataclass

from torch import Tensor

from lighten.registry import observer


@dataclass(frozen=True, kw_only=True)
class MinMaxConfig:
    """No settings."""


@observer("minmax", MinMaxConfig)
class MinMaxObserver:
    """Keeps two numbers."""

    def __init__(self, config: MinMaxConfig) -> None:
        self.low, self.high = 0.0, 0.0

    def observe(self, x: Tensor) -> None:
        """x: any shape, finite."""
        low, high = x.detach().aminmax()
        self.low, self.high = min(self.low, float(low)), max(self.high, float(high))

    def range(self) -> tuple[float, float]:
        """(low, high), containing 0."""
        return self.low, self.high
