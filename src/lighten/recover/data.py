"""What a network is trained on to recover: samples with labels, or inputs alone with a teacher."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lighten.errors import TaskError
from lighten.recover.config import FineTuneConfig
from lighten.task import Task

Loss = Callable[[Any, Any], Tensor]


def recovery_data(task: Task, distill_weight: float = 0.5) -> tuple[Dataset[Any], Loss | None, float]:
    """The train, loss and distill_weight with which fine_tune recovers a model of task, the task's own as teacher.

    Without training data they are the calibration inputs, None and 1: the teacher's outputs are all there is to learn.
    """
    if task.train is None:
        return task.calibration, None, 1.0
    return task.train, task.loss, distill_weight


def build_loader(train: Dataset[Any], config: FineTuneConfig) -> DataLoader[Any]:
    """Batches of train in an order that the seed decides, another one each epoch.

    Raises:
        TaskError: train is empty.
    """
    n = len(train)  # type: ignore[arg-type]
    if n == 0:
        raise TaskError("The training set is empty: there is nothing to fine-tune on. Give at least one sample.")
    return DataLoader(
        train,
        batch_size=config.batch_size,
        shuffle=True,
        # A batch of a few samples would give batch norm statistics that are mostly noise.
        drop_last=n >= config.batch_size,
        generator=torch.Generator().manual_seed(config.seed),
    )
