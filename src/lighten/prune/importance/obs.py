"""OBS for channels: what the layers that read a channel lose when it goes and their other weights make up for it.

Sources: Hassibi & Stork, "Second Order Derivatives for Network Pruning", NIPS 1992; Frantar & Alistarh, "Optimal Brain
Compression", arXiv:2208.11580, for doing it layer by layer; Kurtić, Frantar & Alistarh, "ZipLM", arXiv:2302.04089,
sec. 3.1, for whole columns: a channel owns several, and several layers may read it. Differs: losses are relative to a
layer's own output, so that they compare between layers, and wide groups lose several units at a time.
It is made for refit=True, which carries out what it counts on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lighten.errors import ConfigError
from lighten.prune.importance.readers import Reader
from lighten.prune.importance.unit_data import UnitData, unit_importance
from lighten.prune.methods.inverse import check_damping, damped


@dataclass(frozen=True, kw_only=True)
class OBSChannelsConfig:
    """damping: share of the mean diagonal of X Xᵀ. rounds: how often at most the units that are left are looked at
    again; a group of fewer loses them one by one."""

    needs: ClassVar[str] = "readers"
    comparable: ClassVar[bool] = True
    damping: float = 0.01
    rounds: int = 64

    def __post_init__(self) -> None:
        check_damping(self.damping)
        if self.rounds < 1:
            raise ConfigError(f"rounds={self.rounds} is below 1. Use 64.")


@unit_importance("obs", OBSChannelsConfig)
def obs(units: UnitData, config: OBSChannelsConfig) -> Tensor:
    """[n_units], higher = keep: the squared error of outputs over their mean square, summed over the readers, that
    comes on top when the unit goes next, after the cheaper ones."""
    assert units.readers is not None
    return elimination_costs([_Fit.of(reader, config.damping) for reader in units.readers], config.rounds).float()


@dataclass(frozen=True)
class _Fit:
    """A reader as its least-squares fit goes on. weight [out, columns], inverse of X Xᵀ [columns, columns], columns
    [units left, n]: all of what is left. The last column is padding, for units that own fewer: of weight 0, tied to no
    other."""

    weight: Tensor
    inverse: Tensor
    columns: Tensor

    @classmethod
    def of(cls, reader: Reader, damping: float) -> "_Fit":
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped(reader.moments, damping)))
        padded = torch.block_diag(inverse, torch.ones(1, 1, dtype=inverse.dtype))
        return cls(torch.nn.functional.pad(reader.weight, (0, 1)), padded, reader.columns % len(padded))

    def costs(self) -> Tensor:
        """[units left]: tr Wᵤ (H⁻¹ᵤᵤ)⁻¹ Wᵤᵀ over the columns of each unit, if it alone goes now."""
        # Padding may stand several times in a unit: the diagonal keeps such a block invertible, and its weight is 0.
        blocks = self.inverse[self.columns[:, :, None], self.columns[:, None, :]]
        same = (self.columns[:, :, None] == self.columns[:, None, :]) & ~torch.eye(self.columns.shape[1]).bool()
        weights = self.weight[:, self.columns].permute(1, 2, 0)  # [units, n, out]
        found: Tensor = (torch.linalg.solve(blocks.masked_fill(same, 0), weights) * weights).sum((1, 2))
        return found

    def without(self, gone: Tensor) -> "_Fit":
        """The fit after the units at these places went and all other columns made up for them."""
        last = len(self.inverse) - 1
        out = torch.zeros(last + 1, dtype=torch.bool)
        out[self.columns[gone].flatten()] = True
        out[last] = False
        update = torch.linalg.solve(self.inverse[out][:, out], self.inverse[out][:, ~out])
        stay = torch.ones(len(self.columns), dtype=torch.bool)
        stay[gone] = False
        return _Fit(
            self.weight[:, ~out] - self.weight[:, out] @ update,
            self.inverse[~out][:, ~out] - self.inverse[~out][:, out] @ update,
            ((~out).cumsum(0) - 1)[self.columns[stay]],
        )


def elimination_costs(fits: Sequence[_Fit], rounds: int) -> Tensor:
    """[n_units] float64: the loss on top when each goes in its turn, the cheapest first; never less than one before."""
    n_units = len(fits[0].columns)
    left, found, least = torch.arange(n_units), torch.empty(n_units, dtype=torch.float64), 0.0
    while len(left):
        costs = torch.stack([fit.costs() for fit in fits]).sum(0)
        chosen = costs.argsort(stable=True)[: -(-n_units // rounds)]
        found[left[chosen]] = costs[chosen].clamp(min=least)
        least = float(found[left[chosen]].max())
        fits = [fit.without(chosen) for fit in fits]
        left = left[torch.isin(torch.arange(len(left)), chosen, invert=True)]
    return found
