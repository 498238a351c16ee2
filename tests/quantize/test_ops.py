import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor

from lighten.quantize.ops import dequantize, limit, quantize

values = hnp.arrays("float32", (2, 3, 2), elements=st.floats(-1000, 1000, width=32)).map(torch.from_numpy)
KINDS = {torch.uint8: TensorProto.UINT8, torch.int8: TensorProto.INT8}


def by_loop(x: Tensor, scale: Tensor, zero_point: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Codes and restored values, one scalar at a time, as the ONNX operators are defined."""
    limits = torch.iinfo(zero_point.dtype)
    codes, restored = torch.empty(x.shape, dtype=zero_point.dtype), torch.empty_like(x)
    for index in np.ndindex(*x.shape):
        s, z = (v if v.ndim == 0 else v[index[axis]] for v in (scale, zero_point))
        quotient = np.float32(x[index]) / np.float32(s)
        code = min(max(int(np.rint(quotient)) + int(z), limits.min), limits.max)
        codes[index] = code
        restored[index] = float(np.float32(code - int(z)) * np.float32(s))
    return codes, restored


def by_onnx(x: Tensor, scale: Tensor, zero_point: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    kind = KINDS[zero_point.dtype]
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "scale", "zero_point"], ["codes"], axis=axis),
            helper.make_node("DequantizeLinear", ["codes", "scale", "zero_point"], ["restored"], axis=axis),
        ],
        "round_trip",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, None),
            helper.make_tensor_value_info("scale", TensorProto.FLOAT, None),
            helper.make_tensor_value_info("zero_point", kind, None),
        ],
        [
            helper.make_tensor_value_info("codes", kind, None),
            helper.make_tensor_value_info("restored", TensorProto.FLOAT, None),
        ],
    )
    model = helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)])
    fed = {"x": x.numpy(), "scale": scale.numpy(), "zero_point": zero_point.numpy()}
    codes, restored = ReferenceEvaluator(model).run(None, fed)
    return torch.from_numpy(np.asarray(codes)), torch.from_numpy(np.asarray(restored))


@pytest.mark.parametrize("oracle", [by_loop, by_onnx])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8])
@pytest.mark.parametrize("axis", [None, 0, 1, -1], ids=["per-tensor", "axis0", "axis1", "axis-1"])
@given(x=values, scale=st.floats(0.0625, 8, width=32))
def test_codes_and_values_are_those_of_the_oracle(oracle, dtype, axis, x: Tensor, scale: float) -> None:
    if axis is None:
        scales, zero_points = torch.tensor(scale), torch.tensor(7, dtype=dtype)
    else:
        n = x.shape[axis]
        scales, zero_points = torch.linspace(scale, 2 * scale, n), torch.arange(3, 3 + n).to(dtype)
    codes = quantize(x, scales, zero_points, axis or 0)
    want_codes, want_values = oracle(x, scales, zero_points, axis or 0)
    assert torch.equal(codes, want_codes)
    assert torch.equal(dequantize(codes, scales, zero_points, axis or 0), want_values)


def test_ties_go_to_the_even_code_and_infinities_to_the_ends() -> None:
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, float("inf"), float("-inf")])
    assert quantize(x, torch.tensor(1.0), torch.tensor(100, dtype=torch.uint8)).tolist() == [100, 102, 102, 100, 255, 0]


def test_both_operators_run_on_meta_tensors() -> None:
    scale, zero_point = torch.ones((), device="meta"), torch.zeros((), dtype=torch.uint8, device="meta")
    codes = quantize(torch.ones(2, 3, device="meta"), scale, zero_point)
    assert (codes.shape, codes.dtype) == ((2, 3), torch.uint8)
    assert dequantize(codes, scale, zero_point).dtype == torch.float32


def test_codes_are_limited_from_above_in_their_own_type() -> None:
    codes = torch.tensor([0, 14, 15, 16, 255], dtype=torch.uint8)
    assert torch.equal(limit(codes, 15), torch.tensor([0, 14, 15, 15, 15], dtype=torch.uint8))
    assert limit(codes.to("meta"), 15).dtype == torch.uint8
