import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lighten.errors import ConfigError
from lighten.graph.capture import capture
from lighten.prune import prune
from lighten.prune.masks import mask_weights
from lighten.recover.distill import feature_loss, similarity_loss
from lighten.recover.features import Observed, can_be_observed, stages
from lighten.recover.finetune import FineTuneConfig, fine_tune
from lighten.tasks.networks import ResNet20
from tests.recover.test_finetune import PLAIN, data, flat, seeded
from tests.tiny import images, tiny_task

X = torch.randn(6, 1, 28, 28, generator=torch.Generator().manual_seed(0))
STAGES = ("layer1", "layer2", "layer3")


def resnet() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ResNet20(in_channels=1).eval()


def test_similarity_by_hand() -> None:
    teacher = torch.tensor([[1.0, 0.0], [0.0, 1.0]])  # two samples that have nothing in common
    student = torch.tensor([[2.0], [2.0]])  # and that are the same here
    row = torch.tensor([1.0, 0.0]) - torch.tensor([0.5, 0.5]).sqrt()
    assert similarity_loss(student, teacher).item() == pytest.approx(row.square().sum().item())


@given(st.integers(0, 1000), st.floats(0.1, 10))
def test_similarity_knows_neither_widths_nor_turns_nor_sizes(seed: int, factor: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    made = torch.randn(5, 4, 3, generator=generator)
    wider = torch.cat([made, made], 1) * factor
    assert similarity_loss(wider, made).item() < 1e-10
    turned = made.flatten(1) @ torch.linalg.qr(torch.randn(12, 12, generator=generator))[0]
    assert similarity_loss(turned, made).item() < 1e-8  # float32 rounding, squared
    assert similarity_loss(made[:, :1], made).item() > 1e-4


def test_a_captured_layer_makes_what_the_layer_makes() -> None:
    model = resnet()
    names = (*STAGES, "conv1", "layer2.1", "layer3.2.bn1")
    captured = capture(model, (X,))
    outputs, made = Observed(captured, names)(X)
    expected, wanted = Observed(model, names)(X)
    assert torch.equal(outputs, expected)
    assert list(made) == list(wanted) == list(names)
    for name in names:
        torch.testing.assert_close(made[name], wanted[name])
    assert feature_loss(made, wanted).item() < 1e-10
    assert not any(module._forward_hooks for module in model.modules())
    assert Observed(model)(X)[1] == {}


def test_outputs_keep_their_structure_and_masks_hold() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.LSTM(4, 3, batch_first=True)

        def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
            return {"sum": self.a(x) + y, "states": self.b(x)[0]}

    model, inputs = Two().eval(), (torch.randn(2, 5, 4), torch.randn(2, 5, 4))
    captured = capture(model, inputs)
    outputs, made = Observed(captured, ("a", "b"))(*inputs)
    assert {name: value.shape for name, value in outputs.items()} == {"sum": (2, 5, 4), "states": (2, 5, 3)}
    torch.testing.assert_close(made["b"], Observed(model, ("b",))(*inputs)[1]["b"])
    masked = mask_weights(captured, {"a.weight": torch.zeros(4, 4, dtype=torch.bool)})
    masked.get_parameter("a.weight").data.fill_(1.0)
    assert torch.equal(Observed(masked, ("a",))(*inputs)[1]["a"], model.a.bias.expand(2, 5, 4))


def test_the_parts_of_a_network() -> None:
    assert stages(resnet()) == list(STAGES)
    assert stages(capture(resnet(), (X,))) == list(STAGES)
    assert stages(tiny_task().model) == ["conv1", "norm", "conv2"]
    block = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    trunk = nn.ModuleDict({"embed": nn.Linear(3, 3), "blocks": nn.ModuleList([block, copy.deepcopy(block)])})
    assert stages(nn.ModuleDict({"trunk": trunk, "head": nn.Linear(3, 2)})) == ["trunk.blocks.0", "trunk.blocks.1"]
    assert not can_be_observed(trunk, "blocks")


def test_gradients_go_through_pruned_widths_to_what_came_before() -> None:
    model = resnet()
    student = prune(model, 0.5, example_inputs=(X,), scope="layer").train()
    made = Observed(student, ("layer1", "layer2"))(X)[1]
    assert made["layer1"].shape[1] == 8
    feature_loss(made, Observed(model, ("layer1", "layer2"))(X)[1]).backward()
    moved = {name for name, parameter in student.named_parameters() if parameter.grad is not None}
    assert all(student.get_parameter(name).grad.abs().sum() > 0 for name in ("conv1.weight", "layer2.0.conv1.weight"))
    assert not any(name.startswith(("layer3", "fc")) for name in moved)


def test_features_are_learned_without_a_word_of_the_outputs() -> None:
    task = tiny_task()
    x = images(64, 5)[0]
    student = prune(task.model, 0.5, example_inputs=task.example_inputs, importance="random", scope="layer")
    config = FineTuneConfig(epochs=2, lr=0.05, batch_size=64, feature_weight=1.0)

    def distance(model: nn.Module) -> float:
        layers = ("conv1", "norm", "conv2")
        return feature_loss(Observed(model, layers)(x)[1], Observed(task.model, layers)(x)[1]).item()

    def nothing(outputs: Tensor, targets: Tensor) -> Tensor:
        return 0 * outputs.sum()

    tuned = fine_tune(student, task.train, nothing, config, teacher=task.model)  # type: ignore[arg-type]
    assert distance(tuned.eval()) < distance(student.eval()) / 2


@pytest.mark.parametrize("change", [{"feature_weight": 2.0}, {"features": ("last",)}], ids=str)
def test_every_setting_of_features_is_noticed(change: dict[str, Any]) -> None:
    config = replace(PLAIN, feature_weight=1.0)
    one, other = (
        fine_tune(seeded(), data(), F.cross_entropy, which, teacher=seeded(7))
        for which in (config, replace(config, **change))
    )
    assert not torch.equal(flat(one), flat(other))


def test_layers_that_are_not_there_are_refused() -> None:
    config = replace(PLAIN, feature_weight=1.0, features=("lost",))
    with pytest.raises(ConfigError, match="features name 'lost', which Net does not run"):
        fine_tune(seeded(), data(), F.cross_entropy, config, teacher=seeded(7))
    with pytest.raises(ConfigError, match=r"Linear has no parts that the trained model has too\. Name the layers"):
        fine_tune(seeded(), data(), F.cross_entropy, replace(config, features=()), teacher=nn.Linear(5, 3))
    with pytest.raises(ConfigError, match=r"feature_weight=1.0 with no teacher"):
        fine_tune(seeded(), data(), F.cross_entropy, replace(config, features=()))
