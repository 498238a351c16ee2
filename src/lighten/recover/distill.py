"""Distillation: a smaller network learns from what a teacher makes of the same inputs.

Sources: Hinton et al., "Distilling the Knowledge in a Neural Network", arXiv:1503.02531, sec. 2, for logits; Tung &
Mori, "Similarity-Preserving Knowledge Distillation", arXiv:1907.09682, eq. 1 to 4, for features.
Differs: the distance of features is a mean over samples and layers, so that its weight means the same for any batch.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² · KL(teacher || student) of logits [n, …, classes] softened by T, averaged over all but the classes.

    The factor T² keeps the gradient's size comparable to the task's own loss when T changes.
    """
    wanted = F.log_softmax(teacher / temperature, -1).flatten(0, -2)
    got = F.log_softmax(student / temperature, -1).flatten(0, -2)
    return F.kl_div(got, wanted, reduction="batchmean", log_target=True) * temperature**2


def similarity_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """How differently two layers see which samples of a batch are alike, in 0 … 4, averaged over the samples.

    student, teacher: [n, …] of any widths, pruned or not: what is compared are the products [n, n] of the samples with
    each other, each row of unit length.
    """
    with torch.autocast(student.device.type, enabled=False):
        got, wanted = _likeness(student), _likeness(teacher)
        return (got - wanted).square().sum(1).mean()


def feature_loss(student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> Tensor:
    """The mean of similarity_loss over the layers, by name."""
    return torch.stack([similarity_loss(student[name], teacher[name]) for name in student]).mean()


def _likeness(made: Tensor) -> Tensor:
    rows = made.float().flatten(1)
    return F.normalize(rows @ rows.T, dim=1)
