"""Export: from a module to an artifact that was run and compared before it was written."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lighten.errors import ArtifactError, ConfigError
from lighten.export.onnx import tensor_specs, to_onnx
from lighten.graph.capture import CapturedModule, flat_inputs
from lighten.runtime.artifact import Artifact, write_artifact
from lighten.runtime.runner import load

# Float kernels add in another order: about sqrt(terms) · 2^-24 a layer, 1e-5 to 1e-4 through a deep network.
FLOAT_TOLERANCE = 1e-3
# In a quantized model a sum that falls on a tie may round to the neighbouring code, 1/255 of its tensor's range, and a
# flip moves later ones. A wrong kernel (saturated products, say) is off by far more.
QUANTIZED_TOLERANCE = 5e-2
ONNX_RUNTIMES = ("onnxruntime", "openvino")


def export(
    model: nn.Module,
    example_inputs: tuple[Any, ...],
    out_dir: str | Path,
    *,
    runtime: str = "onnxruntime",
    threads: int | None = None,
) -> Artifact:
    """Lower model to runtime and write the artifact to out_dir, once its outputs agree with the module's.

    example_inputs: positional arguments of model; the comparison runs on them. threads: that the artifact asks for,
    None = every core it finds. The agreement is kept in the manifest's notes: `max_difference` and `rms_difference`,
    relative to the largest and the root mean square output.

    Raises:
        CaptureError: the model cannot be traced or has no counterpart in the runtime. ArtifactError: outputs disagree,
        or out_dir cannot be written. ConfigError: an unknown runtime.
    """
    if runtime not in ONNX_RUNTIMES:
        raise ConfigError(f"Cannot export to the runtime '{runtime}'. Available: {', '.join(ONNX_RUNTIMES)}.")
    proto = to_onnx(model, example_inputs)
    inputs, outputs = tensor_specs(proto)
    plan = model.plan if isinstance(model, CapturedModule) else None
    about: dict[str, Any] = {
        "runtime": runtime,
        "options": {} if threads is None else {"threads": threads},
        "inputs": inputs,
        "outputs": outputs,
        "plan": plan,
    }

    def write_model(folder: Path) -> None:
        (folder / "model.onnx").write_bytes(proto.SerializeToString())

    with tempfile.TemporaryDirectory(prefix="lighten-") as scratch:
        draft = write_artifact(Path(scratch) / "draft", write_files=write_model, **about)
        notes = agreement(model, load(draft.path), example_inputs)
        tolerance = FLOAT_TOLERANCE if plan is None or plan.scheme is None else QUANTIZED_TOLERANCE
        if not notes["rms_difference"] <= tolerance:
            raise ArtifactError(
                f"The outputs of {runtime} differ from the module's by {notes['rms_difference']:.3g} of their size; "
                f"up to {tolerance:g} is rounding. Nothing was written. On a CPU without VNNI, 8-bit products "
                "saturate: quantize with weight_bits=7; otherwise exclude layers until you find the one that differs."
            )
        return write_artifact(Path(out_dir), write_files=write_model, notes=notes, **about)


def agreement(model: nn.Module, runner: Any, example_inputs: tuple[Any, ...]) -> dict[str, float]:
    """How far runner's outputs are from model's: the largest difference and its root mean square, both relative."""
    was_training = model.training
    with torch.no_grad():
        wanted = pytree.tree_leaves(model.eval()(*example_inputs))
    model.train(was_training)
    got = runner(*[np.asarray(x) for x in flat_inputs(example_inputs)])
    pairs = list(zip(wanted, got if isinstance(got, tuple) else (got,), strict=True))
    wants = torch.cat([w.double().flatten() for w, _ in pairs])
    gots = torch.cat([torch.as_tensor(g).double().flatten() for _, g in pairs])
    return {
        "max_difference": _relative((wants - gots).abs().max(), wants.abs().max()),
        "rms_difference": _relative((wants - gots).square().mean().sqrt(), wants.square().mean().sqrt()),
    }


def _relative(difference: Tensor, size: Tensor) -> float:
    return float(difference / size) if size > 0 else float(difference)
