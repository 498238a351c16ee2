from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lighten.recover.finetune import FineTuneConfig
from lighten.tasks.samples import Samples
from lighten.tasks.training import Training, recipe_key


@pytest.fixture
def training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Training:
    monkeypatch.setenv("LIGHTEN_CACHE", str(tmp_path))
    torch.manual_seed(0)
    pairs = Samples(torch.randn(12, 1, 4, 4), torch.arange(12) % 3)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3))
    return Training(
        name="toy",
        network=network.to(memory_format=torch.channels_last),  # type: ignore[call-overload]
        train=pairs,
        calibration=Samples(pairs.inputs),
        selection=pairs,
        holdout=pairs,
        loss=F.cross_entropy,
        train_loss=F.cross_entropy,
        recipe=FineTuneConfig(batch_size=4),
        ingredients={"shift": 2},
    )


def test_a_run_is_kept_and_found_again_bit_by_bit(training: Training) -> None:
    assert training.stored() is None
    model = training.run()
    found = training.stored()
    assert found is not None
    assert not found.training
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), found.state_dict().values(), strict=True))
    assert all(parameter.is_contiguous() for parameter in (*model.parameters(), *found.parameters()))
    inputs = training.holdout.inputs
    assert torch.equal(model(inputs), found(inputs))


def test_the_network_given_stays_untrained(training: Training) -> None:
    before = [parameter.clone() for parameter in training.network.parameters()]
    training.run()
    training.stored()
    assert all(torch.equal(a, b) for a, b in zip(before, training.network.parameters(), strict=True))
    assert training.network[0].weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "change",
    [
        {"recipe": FineTuneConfig(batch_size=4, lr=0.01)},
        {"ingredients": {"shift": 3}},
        {"network": nn.Sequential(nn.Flatten(), nn.Linear(16, 3))},
        {"train": Samples(torch.ones(12, 1, 4, 4), torch.arange(12) % 3)},
        {"train": Samples(torch.zeros(12, 1, 4, 4), torch.arange(12) % 2)},
    ],
    ids=["recipe", "ingredients", "network", "inputs", "targets"],
)
def test_a_changed_recipe_is_another_checkpoint(training: Training, change: dict[str, Any]) -> None:
    assert replace(training, **change).checkpoint != training.checkpoint
    assert replace(training).checkpoint == training.checkpoint


def test_the_finished_task(training: Training) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    task = training.task(model)
    assert task.model is model
    assert [tuple(x.shape) for x in task.example_inputs] == [(1, 1, 4, 4)]
    assert (task.holdout, task.selection, task.train) == (training.holdout, training.selection, training.train)
    assert task.loss is training.loss


@dataclass(frozen=True, kw_only=True)
class LaterConfig(FineTuneConfig):
    option: float | None = None


def test_settings_that_came_later_name_a_checkpoint_only_where_they_are_used() -> None:
    first = {
        "epochs": 1,
        "lr": 0.05,
        "warmup": 0.1,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "batch_size": 128,
        "seed": 0,
        "grad_clip": None,
        "distill_weight": 0.0,
        "temperature": 4.0,
        "bfloat16": False,
        "channels_last": False,
    }
    # Whoever changes this renames every checkpoint, and what is there already has to be trained again.
    assert recipe_key(FineTuneConfig()) == recipe_key(LaterConfig()) == first
    assert recipe_key(LaterConfig(option=0.5)) == first | {"option": 0.5}
