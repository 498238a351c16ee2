from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lighten.graph.capture import capture
from lighten.recover.finetune import FineTuneConfig, Step, fine_tune
from lighten.recover.optimizer import suits_sgd
from lighten.tasks.networks import MobileNetV2, ResNet20, SeedNet, ViT
from lighten.tasks.samples import Samples
from tests.recover.test_finetune import PLAIN, data, flat, seeded


@pytest.mark.parametrize(("decay", "expected"), [(0.0, 0.9), (0.5, 0.85)])
def test_one_step_of_adamw_by_hand(decay: float, expected: float) -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    one = Samples(torch.ones(1, 1), torch.zeros(1, 1))
    config = FineTuneConfig.adamw(lr=0.1, warmup=0.0, weight_decay=decay)
    # The decay takes lr · decay of the weight; the first step of Adam is lr, whatever the size of the gradient.
    assert flat(fine_tune(model, one, F.mse_loss, config)).item() == pytest.approx(expected, abs=1e-6)


def test_momentum_is_the_first_beta() -> None:
    config = replace(PLAIN, optimizer="adamw")
    one, other = (
        fine_tune(seeded(), data(), F.cross_entropy, replace(config, momentum=momentum)) for momentum in (0.9, 0.5)
    )
    assert not torch.equal(flat(one), flat(other))


def test_settings_of_adamw_can_be_changed() -> None:
    assert FineTuneConfig.adamw() == FineTuneConfig(optimizer="adamw", lr=2e-4, weight_decay=0.05, grad_clip=1.0)
    assert FineTuneConfig.adamw(lr=1e-3, epochs=3).lr == 1e-3


def tuned(config: FineTuneConfig, **more: Any) -> tuple[nn.Module, list[float]]:
    rates: list[float] = []
    model = fine_tune(seeded(), data(), F.cross_entropy, config, on_step=lambda step: rates.append(step.lr), **more)
    return model, rates


def test_an_optimizer_of_the_users() -> None:
    given: list[nn.Parameter] = []

    def plain_sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        given.extend(parameters)
        return torch.optim.SGD(parameters, lr=0.3)

    frozen = seeded()
    frozen.first.weight.requires_grad_(False)
    model, rates = tuned(replace(PLAIN, lr=99.0, momentum=0.5), optimizer=plain_sgd)
    other, expected = tuned(replace(PLAIN, lr=0.3))
    assert rates == expected
    assert not torch.equal(flat(model), flat(other))  # no momentum
    given.clear()
    fine_tune(frozen, data(), F.cross_entropy, PLAIN, optimizer=plain_sgd)
    assert len(given) == 5


def test_each_group_keeps_its_rate() -> None:
    rates: list[tuple[float, float]] = []

    def two_rates(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        optimizer = torch.optim.SGD([{"params": parameters[:2], "lr": 0.1}, {"params": parameters[2:], "lr": 0.2}])
        optimizer.register_step_pre_hook(lambda o, *_: rates.append(tuple(group["lr"] for group in o.param_groups)))  # type: ignore[arg-type]
        return optimizer

    tuned(PLAIN, optimizer=two_rates, schedule=lambda done, n_steps: 1 - done / n_steps)
    assert rates == [(pytest.approx(0.1 * (1 - i / 8)), pytest.approx(0.2 * (1 - i / 8))) for i in range(8)]


def test_a_schedule_of_the_users() -> None:
    steps: list[Step] = []
    asked: list[tuple[int, int]] = []

    def halves(done: int, n_steps: int) -> float:
        asked.append((done, n_steps))
        return 0.5**done

    fine_tune(seeded(), data(), F.cross_entropy, PLAIN, schedule=halves, on_step=steps.append)
    assert asked == [(i, 8) for i in range(8)]
    assert [step.lr for step in steps] == [0.1 * 0.5**i for i in range(8)]


def test_sgd_is_for_convolutions_without_layer_norms() -> None:
    image, fits = torch.zeros(1, 1, 28, 28), []
    for network in (ResNet20(), MobileNetV2(), ViT(), nn.Sequential(nn.Flatten(), nn.Linear(784, 10))):
        fits.append(suits_sgd(capture(network, (image,)).graph))
    assert fits == [True, True, False, False]
    assert suits_sgd(capture(SeedNet(), (torch.zeros(1, 1, 32, 32),)).graph)
