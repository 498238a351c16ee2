"""What was simulated is what runs: whole integer kernels, with the outputs that the module promised."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from lighten.export import export
from lighten.quantize import quantize
from lighten.runtime.cpu import int8_saturates, this_cpu
from lighten.runtime.onnxruntime import session_options
from lighten.runtime.runner import load
from tests.quantize.networks import NETWORKS, build, images

INTEGER = {"QLinearConv", "QGemm", "QLinearAdd", "QLinearConcat"}
# How many of each, and nothing in float that multiplies.
KERNELS = {
    "seed": {"QLinearConv": 2, "QGemm": 1},
    "resnet20": {"QLinearConv": 21, "QGemm": 1, "QLinearAdd": 9},
    "inverted-residuals": {"QLinearConv": 10, "QGemm": 1, "QLinearAdd": 2},
    "dense": {"QLinearConv": 3, "QGemm": 1, "QLinearConcat": 2},
    "max-pooling": {"QLinearConv": 2, "QGemm": 3},
    "fully-convolutional": {"QLinearConv": 3, "QLinearAdd": 1},
}
MULTIPLIES = {"Conv", "FusedConv", "NhwcFusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul", "ConvTranspose"}


@dataclass
class Deployed:
    name: str
    model: nn.Module
    quantized: nn.Module
    artifact: Path
    inputs: Tensor  # [128, …], not among the calibration data
    simulated: Tensor
    ran: Tensor


@pytest.fixture(scope="module", params=NETWORKS)
def deployed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Deployed:
    name = request.param
    model, inputs = build(name), images(name, 128, seed=99)
    # Seven bits where products of eight would saturate: the same test is right on either kind of CPU.
    bits = 7 if int8_saturates(this_cpu()) else 8
    quantized = quantize(model, "w8a8", calibration=[images(name, 32, seed) for seed in (50, 51)], weight_bits=bits)
    artifact = tmp_path_factory.mktemp("deployed") / name
    export(quantized, (inputs[:2],), artifact)
    with torch.no_grad():
        simulated = quantized(inputs)
    return Deployed(name, model, quantized, artifact, inputs, simulated, load(artifact, threads=1)(inputs))


def test_integer_kernels_fuse(deployed: Deployed, tmp_path: Path) -> None:
    found = optimized(deployed.artifact, tmp_path)
    assert {op: n for op, n in found.items() if op in INTEGER} == KERNELS[deployed.name]
    assert not MULTIPLIES & set(found)
    assert not {"Relu", "Clip"} & set(found), "an activation function is part of the rounding before it"


def optimized(artifact: Path, folder: Path) -> Counter[str]:
    """The operators that ONNX Runtime runs in place of the file's."""
    options = session_options(threads=1)
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    ort.InferenceSession(str(artifact / "model.onnx"), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node)


def test_simulation_and_deployment_agree(deployed: Deployed) -> None:
    """Kernels round acc · (sx · sw / sy), the simulation acc · sx · sw / sy: near a tie the codes are neighbours."""
    difference = (deployed.simulated - deployed.ran).abs()
    assert (difference <= one_code_off(deployed.quantized) * (1 + 1e-5)).double().mean() >= 0.999


def one_code_off(quantized: nn.Module) -> Tensor:
    """[outputs] the most that an output changes when what it is made from moves by one code.

    Quantized outputs move by a step. A logit, sum of code · input step · weight, moves by input step · sum of |weight|
    when every code that it reads is off by one.
    """
    graph = quantized.graph
    (made,) = next(node for node in graph.nodes if node.op == "output").all_input_nodes
    if made.target == torch.ops.lighten.dequantize.default:
        return quantized.get_buffer(made.args[1].target)
    assert made.target == torch.ops.aten.linear.default
    step = quantized.get_buffer(made.args[0].args[1].target)
    codes, scale = (quantized.get_buffer(f"{made.meta['layer']}.weight_{part}") for part in ("codes", "scale"))
    return step * (codes.abs().sum(1) * scale)


def test_top_1_agrees(deployed: Deployed) -> None:
    """128 samples: 0.998 allows no sample to differ."""
    assert (deployed.simulated.argmax(1) == deployed.ran.argmax(1)).double().mean() >= 0.998


def test_weights_are_stored_as_bytes(deployed: Deployed) -> None:
    matrices = [
        tensor for tensor in onnx.load(deployed.artifact / "model.onnx").graph.initializer if len(tensor.dims) > 1
    ]
    assert {tensor.data_type for tensor in matrices} == {onnx.TensorProto.INT8}
    n_weights = sum(p.numel() for p in deployed.model.parameters() if p.ndim > 1)
    assert sum(len(tensor.raw_data) for tensor in matrices) == n_weights


@pytest.mark.parametrize("name", ["seed", "resnet20", "inverted-residuals"])
def test_activations_of_fewer_bits_run_in_the_same_kernels(name: str, tmp_path: Path) -> None:
    """Their codes are bytes that end at 15: a Clip between kernels, and relu6 is part of the rounding all the same."""
    model, inputs = build(name), images(name, 64, seed=99)
    quantized = quantize(model, "w4a4", calibration=[images(name, 32, 50)])
    export(quantized, (inputs[:2],), tmp_path / "artifact")
    found = optimized(tmp_path / "artifact", tmp_path)
    assert {op: n for op, n in found.items() if op in INTEGER} == KERNELS[name]
    assert not MULTIPLIES & set(found)
    with torch.no_grad():
        simulated = quantized(inputs)
    difference = (simulated - load(tmp_path / "artifact", threads=1)(inputs)).abs()
    assert (difference <= one_code_off(quantized) * (1 + 1e-5)).double().mean() >= 0.999
    codes = [quantized.get_buffer(n.args[0].target) for n in quantized.graph.nodes if is_weight(n)]
    assert max(int(c.abs().max()) for c in codes) == 7


def is_weight(node: torch.fx.Node) -> bool:
    return node.target == torch.ops.lighten.dequantize.default and str(node.args[0].target).endswith("weight_codes")
