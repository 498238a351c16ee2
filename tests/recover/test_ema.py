import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lighten.graph.capture import CapturedModule, capture
from lighten.prune.gradual import prune_gradually
from lighten.prune.masks import mask_weights, masks
from lighten.recover.ema import Average, averaged_
from lighten.recover.finetune import FineTuneConfig, recover
from lighten.recover.weights import copied, named_tensors
from tests.recover.test_finetune import PLAIN, Net, data, flat, seeded
from tests.tiny import tiny_task


def line(value: float) -> nn.Linear:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, value)
    return model


def test_the_decay_rises_to_its_limit() -> None:
    average = Average(0.15, copied(line(0.0)))
    average.update_(line(1.0))
    assert average.tensors["weight"].item() == pytest.approx(0.9)  # 1 / 10 of the old
    average.update_(line(2.0))
    assert average.tensors["weight"].item() == pytest.approx(0.15 * 0.9 + 0.85 * 2)  # 2 / 11 is above 0.15
    average.restart_(line(5.0))
    average.update_(line(5.0))
    assert average.tensors["weight"].item() == pytest.approx(5.0)


def test_counters_and_masks_are_taken_as_they_are() -> None:
    model = Net()
    average = Average(0.5, copied(model))
    model.norm.num_batches_tracked += 7
    model.norm.running_mean += 1
    model.register_buffer("came_later", torch.tensor([True]))
    average.update_(model)
    assert average.tensors["norm.num_batches_tracked"].item() == 7
    assert average.tensors["came_later"].item()
    assert average.tensors["norm.running_mean"].tolist() == pytest.approx([0.9] * 8)


def test_the_average_is_lent_and_taken_back() -> None:
    model, average = line(1.0), Average(0.9, copied(line(3.0)))
    with averaged_(model, average):
        assert flat(model).item() == 3
    assert flat(model).item() == 1
    with averaged_(model, None):
        assert flat(model).item() == 1


def test_training_returns_the_average_of_its_steps() -> None:
    config = replace(PLAIN, epochs=1)
    steps: list[nn.Module] = [seeded()]

    def keep(done: int, n_steps: int, model: nn.Module) -> None:
        if done:
            steps.append(copy.deepcopy(model))

    last = recover(seeded(), data(), F.cross_entropy, config, before_step=keep).model
    average = Average(0.12, copied(steps[0]))
    for model in (*steps[1:], last):
        average.update_(model)
    config = replace(config, ema=0.12)
    seen: list[torch.Tensor] = []
    found = recover(seeded(), data(), F.cross_entropy, config, on_epoch=lambda _, model: seen.append(flat(model)))
    assert all(torch.equal(tensor, average.tensors[name]) for name, tensor in named_tensors(found.model).items())
    assert torch.equal(seen[0], flat(found.model))
    best = recover(seeded(), data(), F.cross_entropy, config, score=lambda model: 1.0)
    assert torch.equal(flat(best.model), flat(found.model))


def test_what_before_step_changed_starts_the_average_anew() -> None:
    def double(done: int, n_steps: int, model: nn.Module) -> bool:
        with torch.no_grad():
            if done == 3:
                model.get_parameter("last.weight").fill_(100.0)
        return done == 3

    config = replace(PLAIN, epochs=1, lr=1e-9, ema=0.9)
    tuned = recover(seeded(), data(), F.cross_entropy, config, before_step=double).model
    torch.testing.assert_close(tuned.get_parameter("last.weight").detach(), torch.full((3, 8), 100.0))


def test_pruned_weights_stay_zero() -> None:
    captured = capture(nn.Linear(5, 3), (torch.zeros(1, 5),))
    masked = mask_weights(captured, {"weight": torch.eye(3, 5, dtype=torch.bool)})
    average = Average(0.9, {name: tensor + 1 for name, tensor in copied(masked).items() if tensor.is_floating_point()})
    with averaged_(masked, average):
        assert int((masked.get_parameter("weight") != 0).sum()) == 3


def test_zeros_that_come_within_training_are_zeros_of_the_average() -> None:
    recipe = FineTuneConfig(epochs=2, lr=0.02, batch_size=64, ema=0.9)
    how: dict[str, Any] = {"granularity": "element", "importance": "l1", "schedule": "gradual:3"}
    pruned = prune_gradually(tiny_task(), 0.8, fine_tuning=recipe, **how)
    assert isinstance(pruned, CapturedModule)
    for name, mask in masks(pruned).items():
        assert torch.equal(pruned.get_parameter(name) != 0, mask)
