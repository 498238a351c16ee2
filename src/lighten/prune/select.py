"""Select: from scores to the exact units that go.

Counts are exact: k units are chosen, k are removed, whatever the ties. Kept counts are then rounded up to a multiple,
because kernels work on whole vectors of channels, and never fall below one multiple or `min_keep`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lighten.errors import ConfigError

SCOPES = ("layer", "global", "macs")


@dataclass(frozen=True, kw_only=True)
class SelectConfig:
    """ratio: share of the units to remove, in [0, 1). scope: "layer" = the share of every group, "global" = of all
    groups together, by scores relative to each group's mean, "macs" = of all groups together, by scores over what the
    units cost. round_to: kept counts are multiples of it (or all). min_keep: at least so many of each group are kept
    (or all)."""

    ratio: float
    scope: str = "global"
    round_to: int = 1
    min_keep: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.ratio < 1:
            raise ConfigError(f"ratio={self.ratio} is outside [0, 1). 0.5 removes half of the channels.")
        if self.scope not in SCOPES:
            raise ConfigError(f"scope='{self.scope}' is unknown. Use one of {', '.join(SCOPES)}.")
        if self.round_to < 1:
            raise ConfigError(f"round_to={self.round_to} is below 1. Use 1 for exact counts, 8 or 16 for vectors.")
        if self.min_keep < 1:
            raise ConfigError(f"min_keep={self.min_keep} is below 1. A layer without channels computes nothing.")


def select_units(
    scores: list[Tensor],
    config: SelectConfig,
    own_ratios: list[float | None] | None = None,
    costs: list[Tensor] | None = None,
) -> list[Tensor]:
    """scores: [n_units] of each group, higher = keep. Returns the indices that go, for each group, ascending.

    own_ratios: of groups that have one; config's ratio is then that of the others alone. costs: [n_units] of each
    group, for scope "macs".
    """
    own = [None] * len(scores) if own_ratios is None else own_ratios
    shares = [config.ratio if ratio is None else ratio for ratio in own]
    counts = [round(share * len(group)) for share, group in zip(shares, scores, strict=True)]
    if config.scope != "layer":
        comparable = _comparable(scores, costs if config.scope == "macs" else None)
        common = [i for i, ratio in enumerate(own) if ratio is None]
        for i, count in zip(common, _share_globally([comparable[i] for i in common], config.ratio), strict=True):
            counts[i] = count
    gone = []
    for group, count in zip(scores, counts, strict=True):
        kept = _round_up(max(len(group) - count, config.min_keep), config.round_to, len(group))
        order = group.argsort(stable=True)
        gone.append(order[: len(group) - kept].sort().values)
    return gone


def _comparable(scores: list[Tensor], costs: list[Tensor] | None) -> list[Tensor]:
    """Scores over costs, or where there are none over the mean of their group."""
    if costs is not None:
        return [group / cost.clamp(min=1) for group, cost in zip(scores, costs, strict=True)]
    return [group / group.mean().clamp(min=torch.finfo(group.dtype).tiny) for group in scores]


def _share_globally(scores: list[Tensor], ratio: float) -> list[int]:
    """How many of each group are among the lowest of all."""
    if not scores:
        return []
    owner = torch.repeat_interleave(torch.tensor([len(group) for group in scores]))
    lowest = torch.cat(scores).argsort(stable=True)[: round(ratio * len(owner))]
    return torch.bincount(owner[lowest], minlength=len(scores)).tolist()


def _round_up(kept: int, multiple: int, most: int) -> int:
    return min(most, max(1, -(-kept // multiple)) * multiple)
