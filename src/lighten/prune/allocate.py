"""Allocate: how many units of which layer stay, exactly, and never none.

Scopes: "layer" = the same share of every layer; "global" = the lowest scores of all layers together; "erk" = density
by shape, so that thin layers stay denser.
Source of ERK: Evci et al., "Rigging the Lottery", arXiv:1911.11134, sec. 3 (Erdős–Rényi-Kernel).
"""

import torch
from torch import Tensor

from lighten.errors import ConfigError

SCOPES = ("layer", "global", "erk")


def check_ratio(ratio: float) -> None:
    """Raise ConfigError where ratio is outside [0, 1)."""
    if not 0 <= ratio < 1:
        raise ConfigError(f"ratio={ratio} is outside [0, 1). 0.9 sets nine of ten weights to zero.")


def counts_gone(units: list[Tensor], shapes: list[torch.Size], ratio: float, scope: str) -> list[int]:
    """How many units of each layer go: round(ratio · all) together, but at least one stays in each.

    units: scores of each layer's units, any shape. shapes: of the weights [out, in, *kernel].
    """
    sizes = [u.numel() for u in units]
    if scope == "layer":
        return [share_gone(size, ratio) for size in sizes]
    total = min(round(ratio * sum(sizes)), sum(sizes) - len(sizes))
    if scope == "erk":
        densities = [sum(shape) / shape.numel() for shape in shapes]
        kept = _erk(sizes, densities, sum(sizes) - total)
        return [size - k for size, k in zip(sizes, kept, strict=True)]
    if scope == "global":
        return _global(units, sizes, total)
    raise ConfigError(f"scope='{scope}' is unknown. Use one of {', '.join(SCOPES)}.")


def share_gone(size: int, ratio: float) -> int:
    """How many of size units go; at least one stays."""
    return min(round(ratio * size), size - 1)


def _global(units: list[Tensor], sizes: list[int], total: int) -> list[int]:
    if not units:
        return []
    scores = torch.cat([u.flatten() for u in units])
    starts = torch.tensor([0, *sizes[:-1]]).cumsum(0)
    best = torch.stack([u.flatten().argmax() for u in units])
    scores[starts + best] = torch.inf
    owner = torch.repeat_interleave(torch.tensor(sizes))
    gone = scores.argsort(stable=True)[:total]
    return torch.bincount(owner[gone], minlength=len(units)).tolist()


def _erk(sizes: list[int], densities: list[float], n_kept: int) -> list[int]:
    """Integers that sum to n_kept, near min(1, ε · density) · size, each between 1 and size."""
    full: set[int] = set()
    while True:
        open_ = [i for i in range(len(sizes)) if i not in full]
        left = n_kept - sum(sizes[i] for i in full)
        weight = sum(sizes[i] * densities[i] for i in open_)
        wanted = [float(sizes[i]) if i in full else left * densities[i] * sizes[i] / weight for i in range(len(sizes))]
        over = {i for i in open_ if wanted[i] > sizes[i]}
        if not over:
            break
        full |= over
    kept = [min(size, max(1, int(w))) for size, w in zip(sizes, wanted, strict=True)]
    by_rest = sorted(range(len(sizes)), key=lambda i: (kept[i] - wanted[i], i))
    while (missing := n_kept - sum(kept)) != 0:
        step = 1 if missing > 0 else -1
        for i in by_rest if step > 0 else reversed(by_rest):
            if sum(kept) != n_kept and 1 <= kept[i] + step <= sizes[i]:
                kept[i] += step
    return kept
