"""An ONNX model of one layer, in float32 or in int8 as quantized models hold it, for timing the layer alone."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from lighten.errors import ConfigError
from lighten.runtime.roofline import Layer
from lighten.runtime.spec import TensorSpec

SCALE = 0.05


def layer_specs(layer: Layer) -> tuple[TensorSpec, TensorSpec]:
    """Its input and output. int8 layers take and give uint8 codes, so that no conversion is timed with them."""
    dtype = "uint8" if layer.dtype == "int8" else layer.dtype
    if _is_linear(layer):
        rest_in: tuple[int, ...] = ()
        rest_out: tuple[int, ...] = ()
    else:
        rest_out = layer.size
        rest_in = (layer.size[0] * layer.stride, layer.size[1] * layer.stride)
    return (
        TensorSpec("x", dtype, (layer.batch, layer.in_channels, *rest_in)),
        TensorSpec("y", dtype, (layer.batch, layer.out_channels, *rest_out)),
    )


def layer_onnx(layer: Layer) -> bytes:
    """The serialized model: a Conv or a Gemm, between DequantizeLinear and QuantizeLinear where it is int8.

    Raises:
        ConfigError: its dtype is neither float32 nor int8.
    """
    if layer.dtype not in ("float32", "int8"):
        raise ConfigError(f"Layers are timed in float32 and int8, not in {layer.dtype}.")
    is_int8 = layer.dtype == "int8"
    x, y = ("x_float", "y_float") if is_int8 else ("x", "y")
    if _is_linear(layer):
        weight_shape: tuple[int, ...] = (layer.out_channels, layer.in_channels)
        node = helper.make_node("Gemm", [x, "weight"], [y], transB=1)
    else:
        weight_shape = (layer.out_channels, layer.in_channels // layer.groups, *layer.kernel)
        pads = [side // 2 for side in layer.kernel] * 2
        strides = [layer.stride] * 2
        node = helper.make_node("Conv", [x, "weight"], [y], pads=pads, strides=strides, group=layer.groups)
    rng = np.random.default_rng(0)
    nodes = [node]
    if is_int8:
        initializers = [
            numpy_helper.from_array(rng.integers(-64, 64, weight_shape).astype("int8"), "codes"),
            numpy_helper.from_array(np.array(SCALE, "float32"), "scale"),
            numpy_helper.from_array(np.array(0, "int8"), "zero"),
            numpy_helper.from_array(np.array(128, "uint8"), "middle"),
        ]
        nodes = [
            helper.make_node("DequantizeLinear", ["x", "scale", "middle"], ["x_float"]),
            helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["weight"]),
            node,
            helper.make_node("QuantizeLinear", ["y_float", "scale", "middle"], ["y"]),
        ]
    else:
        initializers = [numpy_helper.from_array(rng.standard_normal(weight_shape).astype("float32"), "weight")]
    element = TensorProto.UINT8 if is_int8 else TensorProto.FLOAT
    inputs, outputs = ([helper.make_tensor_value_info(spec.name, element, spec.shape)] for spec in layer_specs(layer))
    graph = helper.make_graph(nodes, "layer", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def _is_linear(layer: Layer) -> bool:
    return layer.kernel == (1, 1) and layer.size == (1, 1)
