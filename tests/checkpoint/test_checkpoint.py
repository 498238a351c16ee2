"""What is saved comes back into a fresh instance of the original class: the same outputs, and it goes on from there."""

import copy
import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import lighten
from lighten.errors import ArtifactError, ConfigError
from lighten.graph.capture import CapturedModule, capture
from lighten.graph.groups import find_groups
from lighten.graph.labels import propagate
from lighten.graph.rewrite import remove_units_
from lighten.plan import LayerPlan
from lighten.prune.history import remember_removal_
from lighten.prune.masks import MaskedModule, masks
from tests import networks
from tests.graph.networks import NETWORKS, build

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.fc = nn.Linear(width * 36, 8)
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.norm(self.conv(x))).view(-1, self.width * 36))


def net(seed: int = 0, **settings: int) -> Net:
    torch.manual_seed(seed)
    model = Net(**settings).eval()
    model.norm.running_mean.normal_()
    return model


def without_channels(model: nn.Module, inputs: tuple, ratio: float = 0.5) -> CapturedModule:
    """What the engine of channels does, with the removal kept in mind."""
    captured = capture(model, inputs)
    labels = propagate(captured, inputs)
    groups = find_groups(labels)
    make = torch.Generator().manual_seed(0)
    units = torch.cat(
        [g.units[torch.randperm(len(g.units), generator=make)[: int(ratio * len(g.units))]] for g in groups]
    )
    remember_removal_(captured, labels, units, inputs, "channel")
    remove_units_(captured, labels, units, inputs)
    return captured


def there_and_back(module: nn.Module, fresh: nn.Module, folder: Path) -> nn.Module:
    lighten.save(module, folder)
    return lighten.restore(fresh, folder)


@pytest.mark.parametrize(("granularity", "ratio"), [("element", 0.9), ("block:4x1", 0.5)])
def test_masked_weights_come_back_and_still_hold(granularity: str, ratio: float, tmp_path: Path) -> None:
    pruned = lighten.prune(net(), ratio, granularity=granularity, example_inputs=(X,))
    back = there_and_back(pruned, net(1), tmp_path / "c")
    assert isinstance(back, MaskedModule)
    assert torch.equal(back(X), pruned(X))
    assert {n: m.tolist() for n, m in masks(back).items()} == {n: m.tolist() for n, m in masks(pruned).items()}
    assert back.plan == pruned.plan
    optimizer = torch.optim.SGD(back.parameters(), lr=0.1, momentum=0.9)
    back.train()(X).sum().backward()
    optimizer.step()
    assert not back.get_parameter("conv.weight")[~masks(pruned)["conv.weight"]].any()


@pytest.mark.parametrize("name", NETWORKS)
def test_removed_channels_come_back(name: str, tmp_path: Path) -> None:
    model, inputs = build(name)
    pruned = without_channels(model, inputs)
    fresh = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.normal_()
    back = there_and_back(pruned, fresh, tmp_path / "c")
    assert torch.equal(back(*inputs), pruned(*inputs))
    back.train()(*torch.utils._pytree.tree_map(lambda x: torch.cat([x, x]), inputs)).square().sum().backward()


@pytest.mark.parametrize(
    ("name", "granularity"),
    [("seed", "channel"), ("resnet20", "layer"), ("bert", "head"), ("vit", "layer"), ("densenet", "channel")],
)
def test_what_prune_takes_out_comes_back(name: str, granularity: str, tmp_path: Path) -> None:
    model, inputs = networks.build(name)
    pruned = lighten.prune(model, 0.5, granularity=granularity, example_inputs=inputs)
    fresh = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.normal_()
    back = there_and_back(lighten.prune(pruned, 0.25, example_inputs=inputs), fresh, tmp_path / "c")
    assert back.plan.layers == lighten.prune(pruned, 0.25, example_inputs=inputs).plan.layers
    assert torch.equal(back(*inputs), lighten.prune(pruned, 0.25, example_inputs=inputs)(*inputs))


def test_blocks_of_another_model_are_refused(tmp_path: Path) -> None:
    model, inputs = networks.build("resnet20")
    lighten.save(lighten.prune(model, 0.5, granularity="layer", example_inputs=inputs), tmp_path / "c")
    with pytest.raises(ArtifactError, match=r"no addition 'add.*' to drop a residual block at"):
        lighten.restore(nn.Sequential(nn.Conv2d(1, 16, 3)).to(inputs[0].dtype), tmp_path / "c")


def test_one_removal_after_another_then_masks_then_codes(tmp_path: Path) -> None:
    once = without_channels(net(), (X,), 0.25)
    twice = without_channels(once, (X,), 0.5)
    masked = lighten.prune(twice, 0.5, granularity="element", example_inputs=(X,))
    back = there_and_back(masked, net(1), tmp_path / "float")
    assert torch.equal(back(X), masked(X))
    quantized = lighten.quantize(masked, "w8a8", calibration=[X])
    codes = there_and_back(quantized, net(1), tmp_path / "codes")
    assert torch.equal(codes(X), quantized(X))
    assert not [name for name in codes.state_dict() if "mask" in name]


@pytest.mark.parametrize("scheme", ["w8a8", "w4-g4", "w8"])
def test_quantized_modules_come_back(scheme: str, tmp_path: Path) -> None:
    quantized = lighten.quantize(net(), scheme, calibration=[X], exclude=["conv"])
    with pytest.raises(ConfigError, match="Pass save"):
        lighten.save(quantized, tmp_path / "c")
    lighten.save(quantized, tmp_path / "c", example_inputs=(X,))
    back = lighten.restore(net(1), tmp_path / "c")
    assert torch.equal(back(X), quantized(X))
    assert back.plan == quantized.plan


@pytest.mark.parametrize(
    ("scheme", "settings"),
    [
        ("w8a8", {"steps": ["equalization", "bias-correction"]}),
        ("w8a8", {"steps": ["smoothquant"]}),
        ("w3", {"method": "gptq", "steps": ["equalization", "bias-correction"]}),
        ("w4-g4", {"method": "awq", "steps": ["bias-correction"]}),
        ("w4a4; conv=w8a8", {"method": "mse"}),
        ("w4-g4", {"method": "awq"}),
        ("w8a8-dynamic", {}),
    ],
)
def test_what_other_ways_of_quantizing_leave_comes_back(scheme: str, settings: dict, tmp_path: Path) -> None:
    quantized = lighten.quantize(net(), scheme, calibration=[X], example_inputs=(X,), **settings)
    lighten.save(quantized, tmp_path / "c", example_inputs=(X,))
    assert torch.equal(lighten.restore(net(1), tmp_path / "c")(X), quantized(X))


def test_an_ordinary_module_comes_back_as_its_class(tmp_path: Path) -> None:
    model = net()
    model.fc.weight.data[:, ::2] = 0
    back = there_and_back(model, net(1), tmp_path / "c")
    assert type(back) is Net
    assert torch.equal(back(X), model(X))


def test_tied_weights_are_stored_once(tmp_path: Path) -> None:
    def tied(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        first, second = nn.Linear(64, 64), nn.Linear(64, 64)
        second.weight = first.weight
        return nn.Sequential(first, second)

    back = there_and_back(tied(0), tied(1), tmp_path / "c")
    assert (tmp_path / "c" / "model.safetensors").stat().st_size < 1.3 * 64 * 64 * 4
    assert torch.equal(back(X[0, 0, :1].repeat(1, 8)), tied(0)(X[0, 0, :1].repeat(1, 8)))
    assert back[0].weight is back[1].weight


@pytest.mark.parametrize(
    ("granularity", "ratio", "share"), [("element", 0.9, 0.17), ("2:4", 0.5, 0.55), ("1:4", 0.75, 0.30)]
)
def test_the_file_really_shrinks(granularity: str, ratio: float, share: float, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(512, 512, bias=False)), torch.ones(2, 512)
    lighten.save(lighten.prune(model, ratio, granularity=granularity, example_inputs=(x,)), tmp_path / "sparse")
    lighten.save(model, tmp_path / "dense")
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("sparse", "dense")]
    # 1 − ratio for the values, a bit of 32 for the place, and one part in a hundred for the header.
    assert sizes[0] / sizes[1] < 1 - ratio + 1 / 32 + 0.01 < share


def test_a_second_save_replaces_and_a_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    model = net()
    lighten.save(model, tmp_path / "c")
    lighten.save(net(2), tmp_path / "c")
    assert torch.equal(lighten.restore(net(1), tmp_path / "c")(X), net(2)(X))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(ArtifactError, match=r"other content \(notes.txt\), and is left alone"):
        lighten.save(model, tmp_path / "other")
    assert (tmp_path / "other" / "notes.txt").read_text() == "mine"


def test_channels_gone_without_a_record_are_refused(tmp_path: Path) -> None:
    captured = capture(net(), (X,))
    captured.plan = captured.plan.with_layers({"conv": LayerPlan(channels=16, kept=8, granularity="channel")})
    with pytest.raises(ConfigError, match="it was not kept which"):
        lighten.save(captured, tmp_path / "c", example_inputs=(X,))


def test_another_model_is_refused(tmp_path: Path) -> None:
    lighten.save(without_channels(net(), (X,)), tmp_path / "c")
    lighten.save(lighten.prune(net(), 0.5, granularity="element", example_inputs=(X,)), tmp_path / "e")
    for folder, model, message in (
        ("c", net(width=8), r"has 8 channels, and \d+ was kept"),
        ("c", nn.Sequential(nn.Conv2d(3, 4, 3)), "there are no channels at"),
        ("e", net(width=8), r"conv.weight is \[16, 3, 3, 3\] torch.float32 in the file, and \[8, 3, 3, 3\]"),
        ("e", nn.Sequential(nn.Conv2d(3, 4, 3)), "the file lacks"),
    ):
        with pytest.raises(ArtifactError, match=message):
            lighten.restore(model, tmp_path / folder)
    with pytest.raises(ArtifactError, match="does not fit this model"):
        lighten.restore(net().double(), tmp_path / "e", example_inputs=(X.double(),))


def test_bad_files_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    with pytest.raises(ArtifactError, match=r"Give a folder that lighten\.save wrote"):
        lighten.restore(net(), folder)
    lighten.save(lighten.prune(net(), 0.9, granularity="element", example_inputs=(X,)), folder)
    tensors, whole = folder / "model.safetensors", (folder / "model.safetensors").read_bytes()
    tensors.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArtifactError, match="Cannot read"):
        lighten.restore(net(), folder)
    safetensors.torch.save_file(net().state_dict(), tensors)
    with pytest.raises(ArtifactError, match=r"was not written by lighten\.save"):
        lighten.restore(net(), folder)
    for change, message in (
        ({"version": 99}, "format version 99"),
        ({"tensors": {"x": {"layout": "dense"}}}, "lacks 'x'"),
    ):
        header = {"version": 1, "captured": False, "tensors": {}, **change}
        safetensors.torch.save_file({}, tensors, metadata={"lighten": json.dumps(header)})
        with pytest.raises(ArtifactError, match=message):
            lighten.restore(net(), folder)
    tensors.write_bytes(whole)
    (folder / "plan.yaml").write_text("version: 7\n")
    with pytest.raises(ArtifactError, match="Plan version 7"):
        lighten.restore(net(), folder)
