"""Several processes, on one machine or on many, that train one model: torch's own data parallelism.

A script that is started by torchrun calls torch.distributed.init_process_group() and then recover as ever. Each process
takes its share of every batch; the gradients are averaged, so all hold the same weights after each step. What is not
the same by itself (statistics of batch norm, what before_step changes, scores) is that of the first process.
"""

import math

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lighten.errors import ConfigError
from lighten.recover.weights import named_tensors


def place() -> tuple[int, int]:
    """The number of this process and of all; (0, 1) without a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def check_shares(n_samples: int, batch_size: int) -> None:
    """See that every process gets as much of every batch, or the mean of their gradients is not that of the batch.

    Raises:
        ConfigError: it does not.
    """
    _, size = place()
    if size > 1 and (batch_size % size or n_samples < batch_size):
        raise ConfigError(
            f"batch_size={batch_size} of {n_samples} samples cannot be shared by {size} processes. Choose a multiple "
            f"of {size} that is not above {n_samples}."
        )


def averaging(student: nn.Module) -> nn.Module:
    """student, whose backward pass averages the gradients over all processes."""
    return student if place()[1] == 1 else DistributedDataParallel(student, find_unused_parameters=True)


def agree_(model: nn.Module) -> None:
    """Give model everywhere the parameters and buffers of the first process."""
    if place()[1] > 1:
        for tensor in named_tensors(model).values():
            whole = tensor.contiguous()
            dist.broadcast(whole, 0)
            tensor.copy_(whole)


def agreed(score: float | None) -> float | None:
    """The score that the first process found."""
    if place()[1] == 1:
        return score
    told = torch.tensor([math.nan if score is None else score], dtype=torch.float64)
    dist.broadcast(told, 0)
    return None if told.isnan() else told.item()


def gathered(tensor: Tensor) -> list[Tensor]:
    """tensor as each process has it, in their order."""
    _, size = place()
    if size == 1:
        return [tensor]
    parts = [torch.empty_like(tensor) for _ in range(size)]
    dist.all_gather(parts, tensor)
    return parts


def wait_for_all() -> None:
    """Return once every process is here."""
    if place()[1] > 1:
        dist.barrier()
