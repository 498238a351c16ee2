"""What the second-order methods share: a damped Hessian, its inverse, and OBS scores.

Pruning weight j of a row w, and moving the others of the row as well as possible, costs w_j² / (2 [H⁻¹]_jj) in
½ ‖(w − ŵ) X‖² terms. Source: Hassibi & Stork, "Second Order Derivatives for Network Pruning", NIPS 1992.
"""

import torch
from torch import Tensor

from lighten.errors import ConfigError
from lighten.prune.methods.layer_data import LayerData


def check_damping(damping: float) -> None:
    """Raise ConfigError where damping is not above 0."""
    if not 0 < damping < float("inf"):
        raise ConfigError(f"damping={damping} must be above 0. It is a share of the Hessian's mean diagonal; use 0.01.")


def damped(hessian: Tensor, damping: float) -> Tensor:
    """hessian [columns, columns] with damping · its mean diagonal added; the identity where it is all zero."""
    mean = float(hessian.diagonal().mean())
    return hessian + torch.eye(len(hessian), dtype=hessian.dtype) * (damping * mean if mean > 0 else 1.0)


def inverse(hessian: Tensor, damping: float) -> Tensor:
    """The inverse of the damped hessian, symmetric."""
    return torch.cholesky_inverse(torch.linalg.cholesky(damped(hessian, damping)))


def obs_scores(layer: LayerData, damping: float) -> Tensor:
    """[out, columns] w² / [H⁻¹]_jj of the effective weight: what pruning it costs once the rest of its row has moved.

    As a share of ‖W X‖² of the layer, so that layers compare.
    """
    assert layer.hessian is not None
    costs, energy = [], 0.0
    for weight, hessian in zip(layer.effective.double().chunk(layer.groups), layer.hessian, strict=True):
        costs.append(weight.square() / inverse(hessian, damping).diagonal())
        energy += float(((weight @ hessian) * weight).sum())
    return (torch.cat(costs) / max(energy, torch.finfo(torch.float64).tiny)).clamp(max=1e30).to(layer.weight.dtype)
