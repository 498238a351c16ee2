"""Trains as the test says, as one of the processes that torchrun starts: two_processes.py FOLDER CASE….

Each process writes the model that it got, as FOLDER/CASE-<rank>.safetensors.
"""

import os
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from lighten.prune.gradual import prune_gradually
from lighten.recover.config import FineTuneConfig
from lighten.recover.finetune import Recovery, Step, recover
from lighten.recover.weights import named_tensors
from lighten.tasks.samples import Samples
from tests.tiny import tiny_task

CONFIG = FineTuneConfig(epochs=3, lr=0.1, batch_size=4, grad_clip=0.5, ema=0.5)


def network(norm: bool) -> nn.Module:
    torch.manual_seed(0)
    between = [nn.BatchNorm1d(8), nn.Dropout(0.2)] if norm else []
    return nn.Sequential(nn.Linear(5, 8), *between, nn.ReLU(), nn.Linear(8, 3)).eval()


def data() -> Samples:
    inputs = torch.randn(18, 5, generator=torch.Generator().manual_seed(1))
    return Samples(inputs, inputs[:, :3].argmax(-1))


def train(norm: bool, config: FineTuneConfig = CONFIG, **more: Any) -> Recovery:
    def score(model: nn.Module) -> float:
        return -F.cross_entropy(model(data().inputs), data().targets).item()

    return recover(network(norm), data(), F.cross_entropy, config, score=score, **more)


def pruned() -> nn.Module:
    """While it is trained, by a teacher's outputs and layers; in the whole batch no statistics of batch norm."""
    task = tiny_task(model=network(norm=False), example_inputs=(torch.zeros(1, 5),), train=data())
    recipe = replace(CONFIG, distill_weight=0.5, feature_weight=1e-9)
    return prune_gradually(
        task, 0.5, granularity="element", importance="l1", schedule="gradual:3", fine_tuning=recipe, teacher=task.model
    )


def run(folder: Path, case: str) -> None:
    rank = dist.get_rank()

    def zero(done: int, n_steps: int, model: nn.Module) -> bool:
        with torch.no_grad():
            model.get_parameter("0.bias").fill_(rank)  # another value in each process
        return True

    def die(step: Step) -> None:
        if step.step == 6:
            raise KeyboardInterrupt

    if case == "plain":
        found = train(norm=False).model
    elif case == "norm":
        found = train(norm=True).model
    elif case == "changed":
        found = train(norm=True, config=replace(CONFIG, lr=1e-9), before_step=zero).model
    elif case == "pruned":
        found = pruned()
    else:
        path = folder / "checkpoint.safetensors"
        try:
            train(norm=True, checkpoint=path, every=5, on_step=die)
        except KeyboardInterrupt:
            found = train(norm=True, checkpoint=path, every=5).model
    tensors = {name: tensor.contiguous().clone() for name, tensor in named_tensors(found).items()}
    safetensors.torch.save_file(tensors, folder / f"{case}-{rank}.safetensors")


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    for case in sys.argv[2:]:
        run(Path(sys.argv[1]), case)
    dist.barrier()
    dist.destroy_process_group()
    # All is written. On a starved machine gloo's threads were once still alive when the interpreter went, which ends in
    # std::terminate.
    os._exit(0)
