"""Packed weights in the file: as small as the codes, and what the runtime computes is what the module computes."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

import lighten
from lighten.errors import CaptureError
from lighten.export.onnx import to_onnx
from lighten.quantize.matmul_nbits import block_size_for, linear_nbits, use_matmul_nbits_
from lighten.quantize.scheme import parse_scheme


class Words(nn.Module):
    """A tied embedding, linear layers of rows that blocks do not divide, and a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 72)
        self.up = nn.Linear(72, 160)
        self.down = nn.Linear(160, 72)
        self.conv = nn.Conv1d(72, 72, 3, padding=1)
        self.head = nn.Linear(72, 50, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        x = self.down(torch.relu(self.up(x)))
        return self.head(self.conv(x.mT).mT)


@dataclass
class Exported:
    scheme: str
    model: Words
    quantized: nn.Module
    artifact: Path


IDS = torch.randint(0, 50, (3, 7), generator=torch.Generator().manual_seed(1))
# Fewer kinds of exports than schemes: an export takes seconds.
FUSED = {"w8": 3, "w4-g32": 3, "w4-g48-sym": 3, "w3-g64": 0, "nf4": 0, "fp8": 0, "mxfp4": 0}


@pytest.fixture(scope="module", params=FUSED)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    torch.manual_seed(0)
    model = Words().eval()
    quantized = lighten.quantize(model, request.param, example_inputs=(IDS[:1],))
    folder = tmp_path_factory.mktemp("weight-only") / "artifact"
    lighten.export(quantized, (IDS[:1],), folder)
    return Exported(request.param, model, quantized, folder)


def test_linear_layers_of_4_and_8_bits_become_matmul_nbits(exported: Exported) -> None:
    found = Counter(node.op_type for node in onnx.load(exported.artifact / "model.onnx").graph.node)
    assert found["MatMulNBits"] == FUSED[exported.scheme]
    assert found["MatMul"] + found["Gemm"] == 3 - FUSED[exported.scheme]


def test_the_file_is_as_small_as_the_codes(exported: Exported) -> None:
    """Codes, scales and zero points once, biases, and some thousand bytes of graph; no weight as floats."""
    n_weights = sum(p.numel() for p in exported.model.parameters() if p.ndim > 1)
    tensors = sum(value.nbytes for value in exported.quantized.state_dict().values())
    scheme = parse_scheme(exported.scheme)
    assert tensors < n_weights * (scheme.weight_bits / 8 + 8 / (scheme.group_size or 72)) + 4 * 500
    # A row of 72 is filled up to whole blocks of 16 or 32, and repeats its scale in each: up to 96/72 and 5 scales.
    filling = n_weights * scheme.weight_bits / 8 / 3 + 4 * 4 * (50 + 160 + 72) if FUSED[exported.scheme] else 0
    widened = 3 * exported.quantized.get_buffer("up.weight_scale").numel() * 8 if exported.scheme == "mxfp4" else 0
    size = (exported.artifact / "model.onnx").stat().st_size
    assert size < tensors + filling + widened + 10_000
    assert size < 0.5 * 4 * n_weights


def test_the_runtime_computes_what_the_module_computes(exported: Exported) -> None:
    """The same numbers are added in another order: sums of up to 216 terms, sqrt(216) · 2^-24 of their size a layer."""
    wanted = exported.quantized(IDS)
    difference = (lighten.load(exported.artifact)(IDS) - wanted).abs().max()
    assert difference <= 10 * 216**0.5 * 2**-24 * wanted.abs().max()


def test_other_runtimes_get_standard_operators() -> None:
    torch.manual_seed(0)
    quantized = lighten.quantize(Words().eval(), "w4-g32", example_inputs=(IDS,))
    assert {node.domain for node in to_onnx(quantized, (IDS,), standard=True).graph.node} == {""}


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("columns", [5, 64, 72, 200])
@pytest.mark.parametrize("group", ["", "-g16-asym", "-g32", "-g48", "-g64-asym"])
def test_blocks_hold_the_same_weight(bits: int, columns: int, group: str) -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(columns, 6), torch.randn(4, columns)
    quantized = lighten.quantize(model, f"w{bits}{group}", example_inputs=(x,))
    wanted = quantized(x)
    use_matmul_nbits_(quantized)
    assert [node for node in quantized.graph.nodes if node.target == linear_nbits]
    assert torch.equal(quantized(x), wanted)


@pytest.mark.parametrize(
    ("group_size", "columns", "bits", "block"),
    [
        *((128, 512, 4, 128), (512, 1024, 4, 256), (48, 100, 4, 16), (24, 100, 4, None), (8, 100, 4, None)),
        *((100, 100, 4, 128), (72, 72, 8, 16), (5, 5, 4, 16), (4096, 4096, 8, 256), (200, 72, 4, 32)),
    ],
)
def test_the_largest_block_that_groups_are_made_of(group_size: int, columns: int, bits: int, block: int | None) -> None:
    assert block_size_for(group_size, columns, bits) == block


def test_the_runtime_torch_says_that_it_cannot() -> None:
    quantized = lighten.quantize(nn.Linear(16, 2), "w4", example_inputs=(torch.ones(1, 16),))
    with pytest.raises(CaptureError, match=r"dequantize_packed.* Export to onnxruntime instead"):
        lighten.export(quantized, (torch.ones(1, 16),), "nowhere", runtime="torch")
