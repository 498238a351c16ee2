"""The methods that only score, by hand."""

import copy

import pytest
import torch
from torch import nn

from lighten.errors import ConfigError
from lighten.prune.methods.lamp import LAMPConfig, lamp
from lighten.prune.methods.layer_data import LayerData
from lighten.prune.methods.magnitude import MagnitudeConfig, magnitude
from lighten.prune.methods.obd import OBDConfig, obd
from lighten.prune.methods.random import RandomWeightsConfig, random
from lighten.prune.methods.wanda import WandaConfig, wanda


def layer(weight: list[list[float]], **more: torch.Tensor) -> LayerData:
    return LayerData(weight=torch.tensor(weight), **{"output_scale": torch.ones(len(weight)), **more})


def test_magnitude_is_relative_to_the_layer() -> None:
    assert magnitude(layer([[-1.0, 3.0]]), MagnitudeConfig()).tolist() == [[0.5, 1.5]]
    squares = magnitude(layer([[-1.0, 3.0]]), MagnitudeConfig(order=2))
    torch.testing.assert_close(squares, torch.tensor([[0.2, 1.8]]))
    with pytest.raises(ConfigError, match="order=3"):
        MagnitudeConfig(order=3)


def test_random_has_a_seed_and_tells_layers_apart() -> None:
    one, other = layer([[1.0, 2.0, 3.0]]), layer([[1.0, 2.0, 4.0]])
    assert torch.equal(random(one, RandomWeightsConfig()), random(copy.deepcopy(one), RandomWeightsConfig()))
    assert not torch.equal(random(one, RandomWeightsConfig()), random(one, RandomWeightsConfig(seed=1)))
    assert not torch.equal(random(one, RandomWeightsConfig()), random(other, RandomWeightsConfig()))


def test_wanda_weighs_with_the_norm_of_the_input_and_batch_norm() -> None:
    data = layer(
        [[1.0, 1.0], [2.0, 1.0]], input_square=torch.tensor([[1.0, 9.0]]), output_scale=torch.tensor([1.0, 0.5])
    )
    expected = torch.tensor([[1.0, 3.0], [1.0, 1.5]])
    assert torch.equal(wanda(data, WandaConfig()), expected / expected.mean())


def test_lamp_by_hand() -> None:
    # Sorted squares 1, 4, 4: 1/9, 4/8, 4/4.
    expected = torch.tensor([[4 / 8, 1 / 9, 4 / 4]])
    torch.testing.assert_close(lamp(layer([[2.0, -1.0, 2.0]]), LAMPConfig()), expected)


def test_obd_is_the_loss_that_a_quadratic_rises_by() -> None:
    assert obd(layer([[2.0, 1.0]], fisher=torch.tensor([[3.0, 4.0]])), OBDConfig()).tolist() == [[6.0, 2.0]]


def test_wanda_under_n_of_m_is_the_papers() -> None:
    from lighten.prune import prune

    torch.manual_seed(0)
    linear, x = nn.Linear(8, 3), torch.randn(20, 8) * torch.arange(1.0, 9.0)
    pruned = prune(linear, 0.5, granularity="2:4", importance="wanda", calibration=[x])
    score = (linear.weight.abs() * x.norm(dim=0)).unflatten(1, (-1, 4))
    expected = torch.zeros_like(score).scatter(-1, score.topk(2).indices, 1).flatten(1)
    assert torch.equal((pruned.get_parameter("weight") != 0).float(), expected)
