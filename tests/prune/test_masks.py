"""A pruned weight stays zero, whatever happens to the module."""

import copy
from pathlib import Path

import pytest
import safetensors.torch
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from lighten.errors import ConfigError
from lighten.export.onnx import to_onnx
from lighten.graph.capture import capture
from lighten.graph.fold import fold_batch_norm_
from lighten.prune import prune
from lighten.prune.masks import MaskedModule, make_permanent, mask_weights, masks
from lighten.quantize import quantize

X = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True),
    "adam": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9),
}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))


def pruned() -> MaskedModule:
    module = prune(network(), 0.8, granularity="element", example_inputs=(X,))
    assert isinstance(module, MaskedModule)
    return module


def zeros_hold(module: nn.Module, expected: dict[str, Tensor]) -> bool:
    return all(not module.get_parameter(name)[~mask].any() for name, mask in expected.items())


def train(module: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    module.train()
    for _ in range(steps):
        optimizer.zero_grad()
        module(X).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_no_optimizer_revives_a_weight_and_the_others_move(optimizer: str) -> None:
    module = pruned()
    before, kept = copy.deepcopy(module), masks(module)
    train(module, OPTIMIZERS[optimizer](module.parameters()))
    for name, mask in kept.items():  # right after the step, without another forward pass
        assert not module.get_parameter(name)[~mask].any()
        assert (module.get_parameter(name) != before.get_parameter(name))[mask].float().mean() > 0.9


def test_momentum_of_another_model_revives_nothing() -> None:
    module, dense = pruned(), capture(network(), (X,))
    make = OPTIMIZERS["sgd"]
    foreign = make(dense.parameters())
    train(dense, foreign)
    optimizer = make(module.parameters())
    optimizer.load_state_dict(foreign.state_dict())
    train(module, optimizer)
    state = module.state_dict()
    assert all(not state[name][~mask].any() for name, mask in masks(module).items())
    assert zeros_hold(copy.deepcopy(module), masks(module))


def test_pruned_weights_have_no_gradient_to_clip_by() -> None:
    module = pruned()
    module.train()(X).square().sum().backward()
    assert all(not module.get_parameter(name).grad[~mask].any() for name, mask in masks(module).items())


def test_two_forward_passes_before_a_backward_pass() -> None:
    module = pruned()
    (module(X).sum() + module(X).square().sum()).backward()


def test_copies_go_on_holding() -> None:
    module = pruned()
    copied = copy.deepcopy(module)
    assert masks(copied).keys() == masks(module).keys() == {"0.weight", "4.weight"}
    train(copied, OPTIMIZERS["adam"](copied.parameters()))
    assert zeros_hold(copied, masks(module))
    assert zeros_hold(capture(copied, ()), masks(module))
    assert copied.double()(X.double()).dtype == torch.float64


def test_a_state_dict_carries_the_masks(tmp_path: Path) -> None:
    module, other = pruned(), prune(network(), 0.3, granularity="element", importance="random", example_inputs=(X,))
    safetensors.torch.save_file(module.state_dict(), tmp_path / "m.safetensors")
    other.load_state_dict(safetensors.torch.load_file(tmp_path / "m.safetensors"))
    assert torch.equal(other(X), module(X))
    train(other, OPTIMIZERS["sgd"](other.parameters()))
    assert zeros_hold(other, masks(module))


def test_a_dense_checkpoint_is_masked_as_it_is_loaded() -> None:
    module = pruned()
    module.load_state_dict(network().state_dict(), strict=False)
    assert zeros_hold(module, masks(module))


def test_export_sees_plain_zeros() -> None:
    module = pruned()
    graph = to_onnx(module, (X,)).graph
    stored = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    assert not [name for name in stored if "mask" in name]
    for name, mask in masks(module).items():
        assert not stored[name][~mask.numpy()].any()
    assert {node.op_type for node in graph.node} == {"Conv", "Relu", "Reshape", "Gemm"}


def test_folding_and_quantization_keep_zero() -> None:
    module = pruned()
    folded = capture(module, ())
    assert fold_batch_norm_(folded) == ["0"]
    torch.testing.assert_close(folded(X), module(X))
    assert zeros_hold(folded, masks(module))
    quantized = quantize(module, "w8a8", calibration=[X])
    for name, mask in masks(module).items():
        assert not quantized.state_dict()[f"{name}_codes"][~mask].any()
    assert masks(quantized) == {}


def test_taking_channels_out_of_a_masked_module_keeps_its_zeros() -> None:
    module = pruned()
    smaller = prune(module, 0.5, granularity="channel", example_inputs=(X,))
    sparsity = {name: (smaller.get_parameter(name) == 0).float().mean() for name in masks(module)}
    train(smaller, OPTIMIZERS["sgd"](smaller.parameters()))
    assert sparsity == {name: (smaller.get_parameter(name) == 0).float().mean() for name in masks(smaller)}
    assert min(sparsity.values()) > 0.3


def test_a_tied_weight_has_one_mask() -> None:
    first, second = nn.Linear(8, 8), nn.Linear(8, 8)
    second.weight = first.weight
    module = prune(nn.Sequential(first, nn.ReLU(), second), 0.5, granularity="element", example_inputs=(X[:, 0, 0],))
    (name,) = masks(module)
    x, weight = X[:, 0, 0], module.get_parameter(name)
    assert weight.count_nonzero() == 32
    expected = torch.relu(x @ weight.T + first.bias) @ weight.T + second.bias
    torch.testing.assert_close(module(x), expected)


def test_make_permanent_leaves_an_ordinary_module() -> None:
    module = pruned()
    plain = make_permanent(module)
    assert list(plain.state_dict()) == [n for n in module.state_dict() if not n.endswith("_mask")]
    assert torch.equal(plain(X), module.eval()(X))
    assert plain.plan == module.plan
    train(plain, OPTIMIZERS["sgd"](plain.parameters()))
    assert not zeros_hold(plain, masks(module))
    assert zeros_hold(module, masks(module))
    with pytest.raises(ConfigError, match="has no masks"):
        make_permanent(plain)


def test_a_later_mask_replaces_the_earlier() -> None:
    module = pruned()
    mask = torch.zeros(8, 3, 3, 3, dtype=torch.bool)
    mask_weights(module, {"0.weight": mask})
    assert not module.get_parameter("0.weight").any()
    assert [n for n in module.state_dict() if n.startswith("0.")] == ["0.weight", "0.weight_mask"]
