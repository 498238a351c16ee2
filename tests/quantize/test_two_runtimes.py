"""One file of QuantizeLinear and DequantizeLinear: integer kernels for every multiplication in either runtime."""

from collections import Counter
from pathlib import Path

import onnx
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lighten.export import export
from lighten.quantize import quantize
from lighten.runtime.cpu import int8_saturates, this_cpu
from lighten.runtime.onnxruntime import session_options
from tests.quantize.networks import build, images

ov = pytest.importorskip("openvino")


class Block(nn.Module):
    """A transformer's block: linear layers on [batch, tokens, width]."""

    def __init__(self, width: int, causal: bool) -> None:
        super().__init__()
        self.causal, self.first, self.second = causal, nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        q, k, v = self.qkv(self.first(x)).view(n, tokens, 3, 4, width // 4).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.out(y.transpose(1, 2).reshape(n, tokens, width))
        return x + self.down(F.gelu(self.up(self.second(x))))


class ViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 4, 4)
        self.blocks = nn.Sequential(Block(32, causal=False), Block(32, causal=False))
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.patches(x).flatten(2).transpose(1, 2))).mean(1))


class GPT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(50, 32)
        self.blocks = nn.Sequential(Block(32, causal=True), Block(32, causal=True))
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 50, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.tokens(tokens))))


class Volumes(nn.Sequential):
    def __init__(self) -> None:
        first = nn.Conv3d(2, 8, 3, padding=1), nn.BatchNorm3d(8), nn.ReLU()
        second = nn.Conv3d(8, 8, 3, stride=2, groups=2, padding=1), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten()
        super().__init__(*first, *second, nn.Linear(8, 5))


def network(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    if name == "vit":
        return ViT().eval(), torch.randn(16, 3, 16, 16)
    if name == "volumes":
        return Volumes().eval(), torch.randn(16, 2, 6, 8, 8)
    if name == "gpt":
        return GPT().eval(), torch.randint(0, 50, (16, 12))
    return build(name), images(name, 16, 1)


# Convolutions, linear layers, and products of activations of each network.
LAYERS = {
    **{"resnet20": (21, 1, 0), "inverted-residuals": (10, 1, 0), "volumes": (2, 1, 0)},
    **{"vit": (1, 9, 4), "gpt": (0, 9, 4)},
}


@pytest.mark.parametrize(("name", "steps"), [*((name, ()) for name in LAYERS), ("inverted-residuals", "equalization")])
def test_multiplications_are_in_integer_kernels_in_both_runtimes(
    name: str, steps: str | tuple[str, ...], tmp_path: Path
) -> None:
    model, x = network(name)
    bits = 7 if int8_saturates(this_cpu()) else None
    quantized = quantize(model, "w8a8", calibration=[x], weight_bits=bits, steps=steps)
    export(quantized, (x[:2],), tmp_path / "artifact")
    file = str(tmp_path / "artifact" / "model.onnx")

    options = session_options(threads=1)
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    nodes = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    convolutions, linear, products = LAYERS[name]
    assert nodes["QLinearConv"] == convolutions
    assert nodes["QGemm"] + nodes["QLinearMatMul"] + nodes["MatMulIntegerToFloat"] == linear + products
    assert not {"Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"} & set(nodes)

    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = ov.Core().compile_model(file, "CPU", settings)
    kernels: Counter[tuple[str, bool]] = Counter()
    for node in compiled.get_runtime_model().get_ordered_ops():
        about = (node.get_rt_info()[key] for key in ("layerType", "primitiveType", "originalLayersNames"))
        kind, primitive, names = (str(value.astype(str)) for value in about)
        if kind == "Subgraph":
            kind = "attention" if "matmul" in names else "other"
        kernels[kind, primitive.lower().endswith("_i8")] += 1
    assert kernels["Convolution", True] == convolutions
    assert kernels["FullyConnected", True] == linear
    assert (
        kernels["MatMul", True] + 2 * kernels["attention", True] == products
    )  # both in one kernel, or each in its own
    assert not any(kernels[kind, False] for kind in ("Convolution", "FullyConnected", "MatMul", "attention"))

    with torch.no_grad():
        wanted = quantized(x)
    feed = {session.get_inputs()[0].name: x.numpy()}
    for got in (session.run(None, feed)[0], compiled(x.numpy())[0]):
        # Ties that fall the other way are further roundings of the same steps: they add less than rounding does.
        assert (torch.from_numpy(got) - wanted).norm() < (wanted - model(x)).norm()
