import pytest
import torch
from torch import nn

from lighten.tasks.networks import ResNet20, SeedNet


def n_params(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_seed_net_is_the_network_of_the_design() -> None:
    net = SeedNet()
    assert net(torch.zeros(3, 1, 32, 32)).shape == (3, 10)
    assert n_params(net) == (32 * 9 + 32) + (64 * 32 * 9 + 64) + (64 * 6 * 6 * 10 + 10)
    with pytest.raises(RuntimeError):
        net(torch.zeros(3, 1, 36, 36))  # its view is a constant, not a flatten


def test_resnet20_has_twenty_layers_and_the_parameters_it_should() -> None:
    net = ResNet20()
    assert net(torch.zeros(3, 1, 28, 28)).shape == (3, 10)
    weights = [module for module in net.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    assert (
        len([module for module in weights if not isinstance(module, nn.Conv2d) or module.kernel_size != (1, 1)]) == 20
    )
    # 269 722 with 3 input channels and no projection (0.27 M in the paper); the two projections add 2 752.
    assert n_params(ResNet20(in_channels=3)) == 269_722 + (16 * 32 + 64) + (32 * 64 + 128)
    assert n_params(net) == n_params(ResNet20(in_channels=3)) - 2 * 9 * 16
    assert {"layer1.0.conv1", "layer2.0.bn2", "layer3.2.conv2"} <= dict(net.named_modules()).keys()


def test_resnet20_widths_and_classes() -> None:
    net = ResNet20(in_channels=2, widths=(4, 6, 8), n_classes=3)
    assert net(torch.zeros(1, 2, 16, 16)).shape == (1, 3)
    assert net.fc.in_features == 8
    assert isinstance(net.layer1[0].shortcut, nn.Identity)
