"""What the search may do: the settings of `compress` apart from the budget."""

import math
from dataclasses import dataclass

from lighten.errors import ConfigError
from lighten.runtime.device import DeviceProfile

BLOCK = "block:4x1"


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """channel_shares, zero_shares: what may go of a group's channels, and of a layer's weights in blocks; from 0 up.

    schemes: of dense networks, None = float. sparse_schemes: of weights of networks on the native engine; they make the
    file smaller and nothing faster, so of two that run the same code timing may call either the faster.
    ratios, sparsities: these shares of every layer and nothing else, instead of a search layer by layer; None = search.
    epochs: of a short training, None = a default by the size of the data; long_factor: how many times as many a long
    one has. lr: of training, None = one that suits its optimizer; distill_weight: the share of the loss that the
    original model teaches. max_trials: trainings, at most.
    time_limit_s: no training begins, or goes on, after so many seconds. importance: of channels; "obs" is "l2" for a
    network in which some channels are read by nothing that obs knows, see lighten.search.choices. zero_importance: of
    weights that are to be zero while the rest is trained. round_to: see lighten.prune.
    threads: of every measurement. batch: samples a call that is timed. device: whose time is predicted, instead of
    measuring on this machine; then networks are dense.
    """

    channel_shares: tuple[float, ...] = (0.0, 0.25, 0.5, 0.625, 0.75, 0.875)
    zero_shares: tuple[float, ...] = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95)
    schemes: tuple[str | None, ...] = (None, "w8a8")
    sparse_schemes: tuple[str | None, ...] = ("w8",)
    ratios: tuple[float, ...] | None = None
    sparsities: tuple[float, ...] | None = None
    epochs: int | None = None
    long_factor: int = 4
    lr: float | None = None
    distill_weight: float = 0.5
    max_trials: int = 24
    time_limit_s: float = math.inf
    importance: str = "obs"
    zero_importance: str = "l2"
    round_to: int = 4
    seed: int = 0
    threads: int = 1
    batch: int = 1
    device: DeviceProfile | None = None

    def __post_init__(self) -> None:
        for name in ("channel_shares", "zero_shares", "ratios", "sparsities"):
            shares = getattr(self, name)
            if shares is None:
                continue
            if list(shares) != sorted(set(shares)) or not all(0 <= share < 1 for share in shares):
                raise ConfigError(f"{name}={shares} must be ascending numbers in [0, 1). Try 0.25, 0.5, 0.75.")
        for name in ("channel_shares", "zero_shares"):
            if getattr(self, name)[:1] != (0.0,):
                raise ConfigError(f"{name}={getattr(self, name)} must begin with 0: a layer may stay as it is.")
        if self.is_listed and not self.ratios and not self.sparsities:
            raise ConfigError("There are neither ratios nor sparsities, so nothing to try. Try ratios=(0.25, 0.5).")
        for name, least in (("epochs", 1), ("long_factor", 1), ("max_trials", 1), ("threads", 1), ("batch", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name}={value} is below {least}.")
        if not self.time_limit_s > 0:
            raise ConfigError(f"time_limit_s={self.time_limit_s} is not above 0.")

    @property
    def is_listed(self) -> bool:
        """Whether the caller says what is tried."""
        return self.ratios is not None or self.sparsities is not None
