"""Other tools' static quantization, from a float module and calibration batches to something that gives logits.

ONNX Runtime and NNCF get the file that lighten exports of the float network, batch norm folded, and their result is run
by ONNX Runtime; so is ours. torchao's is run by PyTorch. NNCF has preset MIXED (activations with a zero point, as ours)
and no overflow_fix, which would take a bit from weights for CPUs that saturate. Fewer than 8 bits NNCF has in its
PyTorch backend alone, one width for a whole network: layers that have 8 in ours can be left float.
"""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lighten.export.onnx import to_onnx

Runs = Callable[[Tensor], Tensor]


def in_onnxruntime(model: nn.Module, example: Tensor) -> Runs:
    """model, float or of ours, as ONNX Runtime runs what is exported of it."""
    return _session(to_onnx(model, (example,)).SerializeToString())


def by_onnxruntime(
    model: nn.Module, batches: list[Tensor], *, per_channel: bool = True, percentile: bool = False
) -> Runs:
    """quantize_static: QDQ, uint8 activations, int8 weights, ranges from min to max or its percentile 99.999."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    proto = to_onnx(model, (batches[0],))
    name = proto.graph.input[0].name

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left: Iterator[Any] = iter([{name: x.numpy()} for x in batches])

        def get_next(self) -> Any:
            return next(self.left, None)

    with tempfile.TemporaryDirectory() as folder:
        source, ready, target = (str(Path(folder) / f"{stem}.onnx") for stem in ("float", "ready", "int8"))
        Path(source).write_bytes(proto.SerializeToString())
        quant_pre_process(source, ready)
        quantize_static(
            ready,
            target,
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=per_channel,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.Percentile if percentile else CalibrationMethod.MinMax,
        )
        return _session(Path(target).read_bytes())


def by_nncf(
    model: nn.Module,
    batches: list[Tensor],
    *,
    fast: bool,
    weight_bits: int = 8,
    per_channel: bool = True,
    openvino: bool = False,
) -> Runs:
    """nncf.quantize. fast: with its fast bias correction, else with the one that runs the network layer by layer.

    openvino: by its backend for OpenVINO, which runs the result; the other bias correction fails in that for ONNX where
    a layer's input is read twice. Fewer than 8 bits are for weights alone, by its backend for PyTorch, which compiles
    itself a C++ extension first (NNCF_EXTENSION_LOAD_TIMEOUT, in seconds, is 60).
    """
    import nncf
    from nncf.quantization.advanced_parameters import (
        AdvancedQuantizationParameters,
        OverflowFix,
        QuantizationParameters,
    )

    narrow = weight_bits < 8
    bits = weight_bits if narrow else None
    weights = QuantizationParameters(num_bits=bits, per_channel=None if per_channel else False)
    activations = QuantizationParameters(num_bits=8 if narrow else None)
    settings: dict[str, Any] = {
        "subset_size": len(batches),
        "preset": nncf.QuantizationPreset.MIXED,
        "fast_bias_correction": fast,
        "advanced_parameters": AdvancedQuantizationParameters(
            overflow_fix=OverflowFix.DISABLE,
            weights_quantization_params=weights,
            activations_quantization_params=activations,
        ),
    }
    if narrow:
        settings["target_device"] = nncf.TargetDevice.NPU  # the only one for which it takes weights of 4 bits
        return _no_gradients(nncf.quantize(_Whole(model).eval(), nncf.Dataset(batches), **settings))
    proto = to_onnx(model, (batches[0],))
    if openvino:
        return _in_openvino(proto, batches, settings)
    inputs = [{proto.graph.input[0].name: x.numpy()} for x in batches]
    return _session(nncf.quantize(proto, nncf.Dataset(inputs), **settings).SerializeToString())


def by_torchao(model: nn.Module, batches: list[Tensor]) -> Runs:
    """PT2E with the quantizer for x86: ranges by histogram, weights by channel."""
    from torchao.quantization.pt2e import move_exported_model_to_eval
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
        X86InductorQuantizer,
        get_default_x86_inductor_quantization_config,
    )

    shapes = ({0: torch.export.Dim.DYNAMIC},)
    exported = torch.export.export(model, (batches[0],), dynamic_shapes=shapes).module()
    quantizer = X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(exported, quantizer)
    with torch.no_grad():
        for batch in batches:
            prepared(batch)
    return _no_gradients(move_exported_model_to_eval(convert_pt2e(prepared)))


def _in_openvino(proto: Any, batches: list[Tensor], settings: dict[str, Any]) -> Runs:
    import nncf
    import openvino as ov

    core = ov.Core()
    model = core.read_model(proto.SerializeToString())
    made = nncf.quantize(model, nncf.Dataset([x.numpy() for x in batches]), **settings)
    compiled = core.compile_model(made, "CPU", {"INFERENCE_NUM_THREADS": torch.get_num_threads()})
    return lambda x: torch.from_numpy(compiled(x.numpy())[0])


class _Whole(nn.Module):
    """NNCF adds a child to the module it is given, which an nn.Sequential would run."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Any:
        return self.model(x)


def _no_gradients(model: nn.Module) -> Runs:
    def run(x: Tensor) -> Tensor:
        with torch.no_grad():
            found: Tensor = model(x)
        return found

    return run


def _session(proto: bytes) -> Runs:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = ort.InferenceSession(proto, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])
