"""MatMulNBits: linear layers with 4- or 8-bit weights as the one operator that ONNX Runtime has for them.

Source: com.microsoft.MatMulNBits in ONNX Runtime's ContribOperators.md. It reads weights in blocks of 16 to 256
columns, a power of two, each with a scale; a group of ours is one such block or several with the same scale. What does
not fit (other widths, group sizes that are no multiple of 16, other layers, other runtimes) is unpacked by standard
operators when the file is loaded: as small on disk, but float in memory.
"""

from collections.abc import Callable
from typing import Any

import onnx
import torch
from torch import Tensor, fx

from lighten.graph.arguments import arguments
from lighten.graph.capture import CapturedModule, get_tensor, layer_of
from lighten.quantize.packing import pack, packed_length, unpack
from lighten.quantize.store import register
from lighten.quantize.weight_ops import columns_of, dequantize_packed

BLOCKS = (256, 128, 64, 32, 16)

_LIBRARY = torch.library.Library("lighten", "FRAGMENT")
_LIBRARY.define(
    "linear_nbits(Tensor x, Tensor packed, Tensor scale, Tensor? zero_point, Tensor? bias, int bits, int columns, "
    "int block_size) -> Tensor"
)


def _linear_nbits(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    bias: Tensor | None,
    bits: int,
    columns: int,
    block_size: int,
) -> Tensor:
    padded = scale.shape[1] * block_size
    weight = dequantize_packed(packed, scale, zero_point, bits, [len(packed), padded], block_size)
    return torch.nn.functional.linear(x, weight[:, :columns], bias)


def _linear_nbits_meta(x: Tensor, packed: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(*x.shape[:-1], packed.shape[0])


_LIBRARY.impl("linear_nbits", _linear_nbits, "CompositeExplicitAutograd")
_LIBRARY.impl("linear_nbits", _linear_nbits_meta, "Meta")
linear_nbits = torch.ops.lighten.linear_nbits.default


def block_size_for(group_size: int, columns: int, bits: int) -> int | None:
    """The largest block that groups are made of; None = there is none.

    A row that is one group repeats its scale in every block, and fills the last block up: the fewest bytes win.
    """
    if group_size >= columns:
        return min(BLOCKS, key=lambda block: -(-columns // block) * (block * bits // 8 + 4))
    return next((block for block in BLOCKS if group_size % block == 0), None)


def use_matmul_nbits_(captured: CapturedModule) -> None:
    """Turn linear layers on packed weights into linear_nbits where MatMulNBits can hold them, in place."""
    for node in list(captured.graph.nodes):
        if node.target != torch.ops.aten.linear.default:
            continue
        weight = arguments(node)["weight"]
        if weight.target == dequantize_packed:
            _replace(captured, node, weight)
    captured.graph.eliminate_dead_code()
    captured.delete_all_unused_submodules()
    captured.recompile()


def _replace(captured: CapturedModule, layer: fx.Node, weight: fx.Node) -> None:
    stored = arguments(weight)
    bits, columns, group_size = stored["bits"], columns_of(stored["shape"]), stored["group_size"]
    block_size = block_size_for(group_size, columns, bits)
    scale = get_tensor(captured, str(stored["scale"].target))
    if bits not in (4, 8) or block_size is None or scale.dtype not in (torch.float32, torch.float16):
        return
    n_blocks = -(-columns // block_size)
    parts = {name: stored[name] for name in ("packed", "scale", "zero_point")}
    values = {n: None if p is None else get_tensor(captured, str(p.target)) for n, p in parts.items()}
    fitted = _in_blocks(values, bits, n_blocks, block_size, max(1, min(group_size, columns) // block_size), scale)
    given = arguments(layer)
    graph = captured.graph
    with graph.inserting_before(layer):
        for name, value in fitted.items():
            if value is not None and value is not values[name]:
                parts[name] = graph.get_attr(register(captured, f"{layer.name}_{name}", value))
        made = graph.call_function(
            linear_nbits, (given["input"], *parts.values(), given["bias"], bits, columns, block_size)
        )
    made.meta = {"layer": layer_of(layer)}
    layer.replace_all_uses_with(made)
    graph.erase_node(layer)


def _in_blocks(
    values: dict[str, Tensor | None], bits: int, n_blocks: int, block_size: int, repeats: int, scale: Tensor
) -> dict[str, Tensor | None]:
    """packed, scale and zero_point as blocks; a part that is so already comes back as the same tensor."""
    packed, zero_point = values["packed"], values["zero_point"]
    assert packed is not None
    short = packed_length(n_blocks * block_size, bits) - packed.shape[1]
    if short:
        packed = torch.nn.functional.pad(packed, (0, short))
    if scale.shape[1] == n_blocks:
        return {"packed": packed, "scale": scale, "zero_point": zero_point}
    repeats = n_blocks if scale.shape[1] == 1 else repeats
    if zero_point is not None:
        codes = unpack(zero_point, bits, scale.shape[1]).repeat_interleave(repeats, 1)[:, :n_blocks]
        zero_point = pack(codes.contiguous(), bits)
    return {
        "packed": packed,
        "scale": scale.repeat_interleave(repeats, 1)[:, :n_blocks].contiguous(),
        "zero_point": zero_point,
    }


def onnx_translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """The operator of ONNX Runtime, its weights reshaped when the file is loaded, because a tied one has another shape
    elsewhere."""
    from onnxscript import FLOAT, UINT8, opset20
    from onnxscript.values import Op, Opset

    op: Any = opset20  # its stubs know fewer types than its operators
    matmul_nbits = Op(Opset("com.microsoft", 1), "MatMulNBits", _schema())

    def to_onnx(
        x: FLOAT,
        packed: UINT8,
        scale: FLOAT,
        zero_point: UINT8 | None,
        bias: FLOAT | None,
        bits: int,
        columns: int,
        block_size: int,
    ) -> Any:
        rows = int((packed.shape or [0])[0])

        def shaped(value: Any, shape: list[int]) -> Any:
            return op.Reshape(value, op.Constant(value_ints=shape))

        blocks = shaped(packed, [rows, -1, packed_length(block_size, bits)])
        inputs = [x, blocks, shaped(scale, [-1])]
        inputs += [] if zero_point is None else [shaped(zero_point, [-1])]
        product = matmul_nbits(*inputs, K=columns, N=rows, bits=bits, block_size=block_size)
        return product if bias is None else op.Add(product, bias)

    return {linear_nbits: to_onnx}


def _schema() -> onnx.defs.OpSchema:
    """What the exporter has to know of the operator, which ONNX itself does not know."""
    schema = onnx.defs.OpSchema
    optional = schema.FormalParameterOption.Optional
    floats, bytes_ = ["tensor(float)", "tensor(float16)"], ["tensor(uint8)"]
    return schema(
        "MatMulNBits",
        "com.microsoft",
        1,
        inputs=[
            schema.FormalParameter("A", "T1"),
            schema.FormalParameter("B", "T2"),
            schema.FormalParameter("scales", "T1"),
            schema.FormalParameter("zero_points", "T2", param_option=optional),
        ],
        outputs=[schema.FormalParameter("Y", "T1")],
        type_constraints=[("T1", floats, ""), ("T2", bytes_, "")],
        attributes=[schema.Attribute(name, schema.AttrType.INT, "") for name in ("K", "N", "bits", "block_size")],
    )
