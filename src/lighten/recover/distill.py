"""Distillation: a smaller network learns from what a teacher makes of the same inputs.

Source: Hinton et al., "Distilling the Knowledge in a Neural Network", arXiv:1503.02531, sec. 2.
"""

import torch.nn.functional as F
from torch import Tensor


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² · KL(teacher || student) of logits [n, …, classes] softened by T, averaged over all but the classes.

    The factor T² keeps the gradient's size comparable to the task's own loss when T changes.
    """
    wanted = F.log_softmax(teacher / temperature, -1).flatten(0, -2)
    got = F.log_softmax(student / temperature, -1).flatten(0, -2)
    return F.kl_div(got, wanted, reduction="batchmean", log_target=True) * temperature**2
