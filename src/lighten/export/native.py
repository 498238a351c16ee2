"""From a module to the program of the native engine: names resolved, activations and additions fused into products."""

import math
import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.numpy import save_file
from torch import Tensor, fx

from lighten.errors import CaptureError
from lighten.export.torch import to_torch
from lighten.graph.arguments import arguments
from lighten.graph.capture import CapturedModule
from lighten.quantize.weight_ops import OPERATORS, dequantize_packed
from lighten.runtime.native import PLAN, WEIGHTS
from lighten.runtime.native.packed import Array, Grid, Packed, pack
from lighten.runtime.native.program import Cat, Conv, Elements, Mean, Op, Pool, Program, Reshape
from lighten.runtime.native.program import Tensor as Sizes
from lighten.runtime.spec import TensorSpec

aten = torch.ops.aten
ACTIVATIONS: dict[Any, str] = {
    aten.relu.default: "relu",
    aten.relu6.default: "relu6",
    aten.hardswish.default: "hardswish",
    aten.hardsigmoid.default: "hardsigmoid",
    aten.sigmoid.default: "sigmoid",
    aten.silu.default: "silu",
    aten.tanh.default: "tanh",
}
COMBINATIONS: dict[Any, str] = {aten.add.Tensor: "add", aten.mul.Tensor: "mul", aten.sub.Tensor: "sub"}
# Time of a product with R outputs to a block, for each stored block and place. Reasoned, not measured: a core does
# about as many loads as multiplications, and a window's loads cross cache lines: R multiplications against two loads.
COST = {1: 2.0, 4: 4.0, 8: 8.0}


def to_native(
    captured: CapturedModule, example_inputs: tuple[Any, ...]
) -> tuple[Callable[[Path], None], list[TensorSpec], list[TensorSpec]]:
    """What writes the files of the program into a folder, and its inputs and outputs.

    Raises:
        CaptureError: an operator that the engine does not have, by name, or a batch axis that is not free.
    """
    module, inputs, outputs = to_torch(captured, example_inputs)
    if not captured.batch_is_dynamic:
        raise CaptureError("The native engine needs a free batch axis, and this model's is fixed. Use onnxruntime.")
    reader = _Reader(module)
    program = reader.read()

    def write_files(folder: Path) -> None:
        (folder / PLAN).write_text(program.to_json(), encoding="utf-8")
        tensors = program.tensors
        arrays: dict[str, Array] = {}
        for op in program.ops:
            if isinstance(op, Conv):
                n_columns = tensors[op.inputs[0]].rows * math.prod(op.kernel)
                arrays |= reader.weights[op.weight].to_arrays(op.weight, n_columns, reader.grids.get(op.weight))
        save_file(arrays, folder / WEIGHTS)

    return write_files, inputs, outputs


def best_block(weight: Array, groups: int) -> int:
    """The R of COST at which this weight is cheapest: the pattern of its zeros decides."""
    if weight.shape[0] // groups == 1 and groups > 1:
        return 1
    return min(COST, key=lambda r: COST[r] * len(pack(weight, None, r, groups).index))


class _Reader:
    def __init__(self, module: fx.GraphModule) -> None:
        self.module = module
        self.ops: list[Op] = []
        self.sizes: list[Sizes] = []
        self.at: dict[fx.Node, int] = {}
        self.weights: dict[str, Packed] = {}
        self.grids: dict[str, Grid] = {}
        self.fused: set[fx.Node] = set()

    def read(self) -> Program:
        inputs = []
        for node in self.module.graph.nodes:
            if node.op == "placeholder":
                self._must(node, isinstance(node.meta["val"], Tensor) and node.meta["val"].dtype == torch.float32)
                sizes = _sizes(node)
                self._must(node, sizes is not None)
                assert sizes is not None
                inputs.append(sizes)
                self.at[node] = len(self.sizes)
                self.sizes.append(sizes)
            elif node.op == "call_function" and node.users and node not in self.at and node not in self.fused:
                self._call(node)
        outputs = []
        returned: Any = self.module.graph.output_node().args[0]
        for node in returned:
            self._must(node, node in self.at and node.meta["val"].dtype == torch.float32)
            outputs.append(self.at[node])
        return Program(tuple(inputs), tuple(self.ops), tuple(outputs))

    def _call(self, node: fx.Node) -> None:
        target: Any = node.target
        given = arguments(node)
        if target is aten.sym_size.int or target is operator.mul or target in OPERATORS:  # read by what uses them
            return
        if target in (aten.conv2d.default, aten.linear.default):
            self._product(node, given)
        elif target is aten.max_pool2d.default:
            self._must(node, not given["ceil_mode"])
            kernel = _pair(given["kernel_size"])
            sizes = {k: _pair(given[k]) for k in ("padding", "dilation")}
            self._add(
                node,
                Pool(
                    inputs=(self._value(node, given["self"]),),
                    mode="max",
                    kernel=kernel,
                    stride=_pair(given["stride"] or kernel),
                    **sizes,
                ),
            )
        elif target is aten.avg_pool2d.default:
            padding = _pair(given["padding"])
            fits = not given["ceil_mode"] and given["divisor_override"] is None
            self._must(node, fits and (given["count_include_pad"] or not any(padding)))
            kernel = _pair(given["kernel_size"])
            stride = _pair(given["stride"] or kernel)
            source = self._value(node, given["self"])
            self._add(node, Pool(inputs=(source,), mode="mean", kernel=kernel, stride=stride, padding=padding))
        elif target is aten.adaptive_avg_pool2d.default and list(given["output_size"]) == [1, 1]:
            self._add(node, Mean(inputs=(self._value(node, given["self"]),)))
        elif target is aten.mean.dim:
            x: Any = node.args[0]
            ndim = x.meta["val"].ndim
            self._must(node, ndim == 4 and sorted(d % ndim for d in given["dim"]) == [2, 3])
            self._add(node, Mean(inputs=(self._value(node, x),)))
        elif target in ACTIVATIONS or target is aten.gelu.default or target is aten.hardtanh.default:
            self._add(node, Elements(inputs=(self._value(node, given["self"]),), act=self._act(node)))
        elif target in COMBINATIONS and given.get("alpha", 1) == 1:
            a, b = (self._value(node, given[name]) for name in ("self", "other"))
            if self.sizes[a] != self.sizes[b] and COMBINATIONS[target] != "sub" and self.sizes[b] == _sizes(node):
                a, b = b, a
            self._add(node, Elements(inputs=(a, b), op=COMBINATIONS[target]))
        elif target is aten.cat.default:
            self._must(node, given["dim"] % node.meta["val"].ndim == 1 and node.meta["val"].ndim in (2, 4))
            self._add(node, Cat(inputs=tuple(self._value(node, x) for x in given["tensors"])))
        elif target in (aten.view.default, aten.reshape.default, aten.flatten.using_ints, aten.squeeze.dims):
            self._reshape(node, given["self"])
        elif target in (aten.clone.default, aten.alias.default, aten.contiguous.default):
            self.at[node] = self._value(node, given["self"])
        else:
            self._must(node, False)

    def _product(self, node: fx.Node, given: dict[str, Any]) -> None:
        """A convolution or linear layer, with the addition and the activation that alone read it."""
        is_conv = node.target is aten.conv2d.default
        x, groups = self._value(node, given["input"]), given.get("groups", 1)
        self._must(node, is_conv or node.meta["val"].ndim == 2)
        weight, grid = self._weight(node, given["weight"])
        bias = None if given["bias"] is None else self._array(node, given["bias"])
        block = best_block(weight, groups)
        name = f"w{len(self.weights)}"
        self.weights[name] = pack(weight, bias, block, groups)
        if grid is not None:
            self.grids[name] = grid
        last, inputs, act = node, [x], "none"
        user = _only_user(last)
        if user is not None and user.target is aten.add.Tensor and arguments(user)["alpha"] == 1:
            other: Any = user.args[1] if user.args[0] is last else user.args[0]
            if other in self.at and other is not last and _sizes(other) == _sizes(last):
                self.fused.add(last)
                last, inputs = user, [x, self.at[other]]
        user = _only_user(last)
        if user is not None and (act_of := self._act(user, must=False)) != "none":
            self.fused.add(last)
            last, act = user, act_of
        window: dict[str, Any] = {}
        if is_conv:
            window = {"kernel": tuple(weight.shape[2:])}
            window |= {k: _pair(given[k]) for k in ("stride", "padding", "dilation")}
        window |= {} if grid is None else {"bits": grid.bits}
        op = Conv(inputs=tuple(inputs), weight=name, rows=weight.shape[0], block=block, act=act, **window)
        self._add(last, op)

    def _act(self, node: fx.Node, must: bool = True) -> str:
        if node.target in ACTIVATIONS:
            return ACTIVATIONS[node.target]
        given = arguments(node)
        if node.target is aten.gelu.default:
            return "gelu" if given["approximate"] == "none" else "gelu_tanh"
        if node.target is aten.hardtanh.default and (given["min_val"], given["max_val"]) == (0, 6):
            return "relu6"
        if must:
            self._must(node, False)
        return "none"

    def _reshape(self, node: fx.Node, x: Any) -> None:
        source, sizes = self._value(node, x), _sizes(node)
        self._must(node, sizes is not None)
        assert sizes is not None
        if sizes == self.sizes[source]:
            self.at[node] = source
            return
        self._must(node, sizes.height * sizes.width == 1)
        self._add(node, Reshape(inputs=(source,), rows=sizes.rows))

    def _add(self, node: fx.Node, op: Op) -> None:
        wanted = _sizes(node)
        program = Program(tuple(self.sizes), (op,), ())
        try:
            made = program.tensors[-1]
        except ValueError as error:
            raise CaptureError(f"{_refusal(node)} {error}.") from None
        assert made == wanted, f"{node}: {made} instead of {wanted}"
        self.ops.append(op)
        self.at[node] = len(self.sizes)
        self.sizes.append(made)

    def _value(self, node: fx.Node, x: Any) -> int:
        self._must(node, isinstance(x, fx.Node) and x in self.at)
        return self.at[x]

    def _weight(self, node: fx.Node, x: Any) -> tuple[Array, Grid | None]:
        """A weight in float32 and, where it is stored as integers with a scale for each output, their grid."""
        if not isinstance(x, fx.Node) or x.target not in OPERATORS:
            return self._array(node, x), None
        target: Any = x.target
        given: dict[str, Any] = {
            k: self._constant(node, v) if isinstance(v, fx.Node) else v for k, v in arguments(x).items()
        }
        value = target(**given)
        self._must(node, value.dtype == torch.float32)
        is_grid = target is dequantize_packed and given["zero_point"] is None and given["scale"].shape[1] == 1
        grid = Grid(given["bits"], given["scale"][:, 0].numpy()) if is_grid else None
        return value.numpy(), grid

    def _array(self, node: fx.Node, x: Any) -> Array:
        value = self._constant(node, x)
        self._must(node, value.dtype == torch.float32)
        array: Array = value.numpy()
        return array

    def _constant(self, node: fx.Node, x: Any) -> Tensor:
        self._must(node, isinstance(x, fx.Node) and x.op == "get_attr")
        value: Any = self.module
        for part in str(x.target).split("."):
            value = getattr(value, part)
        constant: Tensor = value.detach()
        return constant

    def _must(self, node: fx.Node, holds: bool) -> None:
        if not holds:
            raise CaptureError(f"{_refusal(node)} Export to onnxruntime instead.")


def _refusal(node: fx.Node) -> str:
    return f"The native engine cannot compute '{node.target}' ('{node.name}') as the model uses it."


def _sizes(node: fx.Node) -> Sizes | None:
    """[n, channels, height, width] or [n, features], n being the free batch; None for anything else."""
    shape = node.meta["val"].shape
    if len(shape) not in (2, 4) or isinstance(shape[0], int) or not all(isinstance(size, int) for size in shape[1:]):
        return None
    return Sizes(*shape[1:]) if len(shape) == 4 else Sizes(shape[1], 1, 1)


def _only_user(node: fx.Node) -> fx.Node | None:
    (user, *others) = node.users
    return None if others or user.op != "call_function" else user


def _pair(value: Any) -> tuple[int, int]:
    values = [value] if isinstance(value, int) else list(value)
    return (values[0], values[-1])
