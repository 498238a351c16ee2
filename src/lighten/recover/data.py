"""What a network is trained on to recover: samples with labels, or inputs alone with a teacher."""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, Sampler

from lighten.errors import TaskError
from lighten.recover.config import FineTuneConfig
from lighten.recover.parallel import check_shares, place
from lighten.task import Task

Loss = Callable[[Any, Any], Tensor]


def recovery_data(task: Task, distill_weight: float = 0.5) -> tuple[Dataset[Any], Loss | None, float]:
    """The train, loss and distill_weight with which fine_tune recovers a model of task, the task's own as teacher.

    Without training data they are the calibration inputs, None and 1: the teacher's outputs are all there is to learn.
    """
    if task.train is None:
        return task.calibration, None, 1.0
    return task.train, task.loss, distill_weight


class Batches(Sampler[list[int]]):
    """The indices of n samples in batches, in a new order each epoch.

    A last batch that is short is left out: a few samples would give batch norm statistics that are mostly noise.
    Of several processes each takes its share of every batch; all draw the same order.
    skip: so many batches of the next epoch are left out, without a look at their samples.
    """

    def __init__(self, n: int, batch_size: int, order: torch.Generator) -> None:
        self.batches = BatchSampler(RandomSampler(range(n), generator=order), batch_size, drop_last=n >= batch_size)
        self.skip = 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        skip, self.skip = self.skip, 0
        rank, size = place()
        return (batch[rank::size] for batch in islice(iter(self.batches), skip, None))


def build_loader(train: Dataset[Any], config: FineTuneConfig) -> tuple[DataLoader[Any], Batches, torch.Generator]:
    """Batches of train in an order that the seed decides, what cuts them, and what draws their order.

    Raises:
        TaskError: train is empty. ConfigError: several processes cannot share batches of that size.
    """
    n = len(train)  # type: ignore[arg-type]
    if n == 0:
        raise TaskError("The training set is empty: there is nothing to fine-tune on. Give at least one sample.")
    check_shares(n, config.batch_size)
    order = torch.Generator().manual_seed(config.seed)
    batches = Batches(n, config.batch_size, order)
    return DataLoader(train, batch_sampler=batches, generator=order), batches, order
