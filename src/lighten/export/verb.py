"""Export: from a module to an artifact that was run and compared before it was written."""

import copy
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lighten.errors import ArtifactError
from lighten.export.lower import lower, must_be_known
from lighten.export.onnx import named_inputs
from lighten.graph.capture import CapturedModule, capture
from lighten.plan import Plan
from lighten.runtime.artifact import Artifact, write_artifact
from lighten.runtime.runner import load

# Float kernels add in another order: about sqrt(terms) · 2^-24 a layer, 1e-5 to 1e-4 through a deep network.
FLOAT_TOLERANCE = 1e-3
# In a quantized model a sum that falls on a tie may round to the neighbouring code, 1/255 of its tensor's range, and a
# flip moves later ones. A wrong kernel (saturated products, say) is off by far more.
QUANTIZED_TOLERANCE = 5e-2
FLOAT_ADVICE = (
    "Does the model draw random numbers, or depend on the batch? Then it cannot be checked; make it repeatable."
)
QUANTIZED_ADVICE = (
    "On a CPU without VNNI, 8-bit products saturate: quantize with weight_bits=7; otherwise exclude layers until you "
    "find the one that differs."
)


def export(
    model: nn.Module,
    example_inputs: tuple[Any, ...],
    out_dir: str | Path,
    *,
    runtime: str = "onnxruntime",
    threads: int | None = None,
    values: str = "float32",
) -> Artifact:
    """Lower model to runtime and write the artifact to out_dir, once its outputs agree with the module's.

    example_inputs: positional arguments of model; the comparison runs on them. runtime: "auto" is whatever `accelerate`
    finds fastest, which takes a minute or two. threads: that the artifact asks for, None = every core it finds, or for
    "auto" the fastest number. values: the type of float weights of convolutions and linear layers; "bfloat16", half the
    bytes and each weight rounded by up to 2^-9 of its size, is for runtime "native" alone. The agreement is kept in the
    manifest's notes: `max_difference` and `rms_difference`, relative to the largest and the root mean square output.

    Raises:
        CaptureError: the model cannot be traced or has no counterpart in the runtime. ArtifactError: outputs disagree,
        or out_dir cannot be written. ConfigError: an unknown runtime, or values that it does not have.
    """
    if runtime == "auto" and values == "float32":
        from lighten.accelerate.verb import accelerate  # it stands to the right of this package, and imports it

        return accelerate(model, example_inputs, out_dir, threads=threads)
    must_be_known(runtime, values)
    captured = capture(model, example_inputs)
    lowered = lower(captured, example_inputs, runtime, values)
    plan = plan_of(model)
    about: dict[str, Any] = {
        "runtime": runtime,
        "options": {} if threads is None else {"threads": threads},
        "inputs": lowered.inputs,
        "outputs": lowered.outputs,
        "write_files": lowered.write_files,
        "plan": plan,
    }
    with tempfile.TemporaryDirectory(prefix="lighten-") as scratch:
        draft = write_artifact(Path(scratch) / "draft", **about)
        by_name = {name: value.detach() for name, value in named_inputs(captured, example_inputs).items()}
        notes = agreement(outputs_of(model, example_inputs), load(draft.path)(by_name))
        tolerance = tolerance_for(plan) if values == "float32" else QUANTIZED_TOLERANCE
        if not notes["rms_difference"] <= tolerance:
            raise ArtifactError(
                f"The outputs of {runtime} differ from the module's by {notes['rms_difference']:.3g} of their size; "
                f"up to {tolerance:g} is rounding. Nothing was written. "
                + (FLOAT_ADVICE if tolerance == FLOAT_TOLERANCE else QUANTIZED_ADVICE)
                + ("" if values == "float32" else f" Or leave out values='{values}', which rounds weights.")
            )
        return write_artifact(Path(out_dir), notes={**lowered.notes, **notes}, **about)


def agreement(wanted: list[Tensor], got: Tensor | tuple[Tensor, ...]) -> dict[str, float]:
    """How far the outputs got are from those wanted: the largest difference and its root mean square.

    Both are relative to the same figure of the output itself, and of several outputs the worst one counts.
    """
    pairs = list(zip(wanted, got if isinstance(got, tuple) else (got,), strict=True))
    return {
        "max_difference": _worst(_relative(*pair, lambda x: x.abs().amax()) for pair in pairs),
        "rms_difference": _worst(_relative(*pair, lambda x: x.square().mean().sqrt()) for pair in pairs),
    }


def plan_of(model: nn.Module) -> Plan | None:
    """What lighten did to model; None where it did nothing."""
    return model.plan if isinstance(model, CapturedModule) else None


def tolerance_for(plan: Plan | None) -> float:
    """The largest root mean square difference that still is rounding, for a model that plan was done to."""
    return FLOAT_TOLERANCE if plan is None or plan.scheme is None else QUANTIZED_TOLERANCE


def outputs_of(model: nn.Module, inputs: tuple[Any, ...]) -> list[Tensor]:
    """The tensors that model returns in eval mode; run on a copy, because parts of it may be in another mode."""
    with torch.no_grad():
        leaves = pytree.tree_leaves(copy.deepcopy(model).eval()(*inputs))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def _worst(differences: Iterable[float]) -> float:
    """The largest, or NaN if there is one: Python's max() may drop it."""
    return float(torch.tensor(list(differences), dtype=torch.float64).max())


def _relative(wanted: Tensor, got: Tensor, size: Callable[[Tensor], Tensor]) -> float:
    """size of the difference over size of what was wanted; equal infinities, and NaN in the same place, are no
    difference."""
    if not wanted.numel():
        return 0.0
    wanted, got = wanted.double(), got.double()
    same = (wanted == got) | (wanted.isnan() & got.isnan())
    difference = size(torch.where(same, 0.0, wanted - got))
    scale = size(torch.where(wanted.isfinite(), wanted, 0.0))
    return float(difference / scale) if scale > 0 else float(difference)
