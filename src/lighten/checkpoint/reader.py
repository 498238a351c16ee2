"""restore: from the original model class and a folder written by `save` to the compressed module, without pickle.

The plan is applied to a copy of the instance again: the same channels go (which, the file says), the same layers are
quantized. The tensors are then the file's. Nothing is computed from the instance's own weights.
"""

import copy
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from lighten.checkpoint.describe import rebuild
from lighten.checkpoint.sparse import BITMASK, expand
from lighten.checkpoint.writer import FORMAT_VERSION, PLAN, TENSORS
from lighten.errors import ArtifactError, LightenError
from lighten.graph.capture import CapturedModule, capture
from lighten.graph.labels import propagate
from lighten.graph.rewrite import remove_units_
from lighten.plan import Plan
from lighten.prune.depth import ADDITIONS, drop_blocks_
from lighten.prune.history import remember_inputs_, remember_removal_
from lighten.prune.masks import is_mask, mask_weights
from lighten.quantize import quantize


def restore(model: nn.Module, folder: str | Path, *, example_inputs: tuple[Any, ...] | None = None) -> nn.Module:
    """The module that was saved in folder; model is a fresh instance of the original class, and is not modified.

    example_inputs: overrules the stored shapes, for a model whose inputs cannot be all zeros.

    Raises:
        ArtifactError: folder is not a checkpoint, is damaged, or belongs to another model.
        CaptureError: model cannot be traced.
    """
    folder = Path(folder)
    stored, header = _read(folder / TENSORS)
    try:
        plan = Plan.load(folder / PLAN)
    except LightenError as error:
        raise ArtifactError(f"'{folder}' is no checkpoint of lighten.save: {error}") from error
    tensors, masked = _decode(stored, header["tensors"], folder)
    if not header["captured"]:
        restored = copy.deepcopy(model)
    else:
        inputs = rebuild(header["inputs"]) if example_inputs is None else example_inputs
        restored = _rebuilt(model, plan, inputs, stored, header["removals"], folder)
        if masked:
            _must_fit(restored, {name: tensors[name] for name in masked}, folder, only=set(masked))
            restored = mask_weights(restored, masked)
    _must_fit(restored, tensors, folder)
    restored.load_state_dict({**restored.state_dict(), **tensors})
    if isinstance(restored, CapturedModule):
        restored.plan = plan
        return restored.eval()
    return restored


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})["lighten"])
            if header["version"] != FORMAT_VERSION:
                raise ArtifactError(
                    f"'{path}' has format version {header['version']}; this lighten reads {FORMAT_VERSION}."
                )
            return {name: file.get_tensor(name) for name in file.keys()}, header  # noqa: SIM118  it is no mapping
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"Cannot read '{path}': {error}. Give a folder that lighten.save wrote.") from error
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ArtifactError(f"'{path}' was not written by lighten.save: its header lacks {error}.") from error


def _decode(
    stored: dict[str, Tensor], about: dict[str, dict[str, Any]], folder: Path
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors by name, and the masks of those that are masked."""
    tensors: dict[str, Tensor] = {}
    masked: dict[str, Tensor] = {}
    try:
        for name, entry in about.items():
            if "same_as" in entry:
                tensors[name] = tensors[entry["same_as"]]
            elif entry["layout"] == BITMASK:
                tensors[name], mask = expand(stored[f"{name}#bits"], stored[f"{name}#values"], tuple(entry["shape"]))
                if entry["masked"]:
                    masked[name] = mask
            else:
                tensors[name] = stored[name]
    except KeyError as error:
        raise ArtifactError(f"'{folder / TENSORS}' is incomplete: it lacks {error}.") from error
    return tensors, masked


def _rebuilt(
    model: nn.Module, plan: Plan, inputs: Any, stored: dict[str, Tensor], removals: list[dict[str, Any]], folder: Path
) -> CapturedModule:
    captured = capture(model, inputs)
    remember_inputs_(captured, inputs)
    for step, removal in enumerate(removals):
        if removal["dropped"]:
            _drop_(captured, removal["dropped"], inputs, folder)
            continue
        prefix = f"#kept/{step}/"
        kept = {name.removeprefix(prefix): indices for name, indices in stored.items() if name.startswith(prefix)}
        _remove_(captured, kept, inputs, removal["granularity"], folder)
    if plan.scheme is not None:
        excluded = [name for name, reason in plan.skipped.items() if reason == "not quantized: excluded"]
        # Ranges and codes are the file's; what is calibrated here only has to have the right shapes.
        methods = {layer.method for layer in plan.layers.values()} | {plan.method}
        adds_factors = "awq" in methods  # the one method that puts an operator before the layers
        calibration = [inputs] if plan.observer is not None or adds_factors or plan.steps else None
        captured = quantize(
            captured,
            plan.scheme,
            calibration=calibration,
            example_inputs=inputs,
            exclude=excluded,
            steps=plan.steps,
            method="awq" if adds_factors else None,
            observer=plan.observer,
            weight_bits=plan.weight_bits if plan.observer is not None else None,
        )
    return captured


def _drop_(captured: CapturedModule, dropped: list[Any], inputs: Any, folder: Path) -> None:
    additions = {node.name for node in captured.graph.nodes if node.target in ADDITIONS}
    for name, skip in dropped:
        if name not in additions or skip not in (0, 1):
            raise _other_model(folder, f"it has no addition '{name}' to drop a residual block at")
    drop_blocks_(captured, [(name, skip) for name, skip in dropped], inputs)


def _remove_(captured: CapturedModule, kept: dict[str, Tensor], inputs: Any, granularity: str, folder: Path) -> None:
    labels = propagate(captured, inputs, keep=granularity)
    gone, stays, known = [], [torch.zeros(1, dtype=torch.int64)], set()
    for slot in labels.slots:
        name = f"{slot.axis}/{slot.parameter}"
        is_kept = torch.ones(len(slot.ids), dtype=torch.bool)
        if name in kept:
            known.add(name)
            indices = kept[name].long()
            if len(indices) and int(indices.max()) >= len(slot.ids):
                raise _other_model(
                    folder, f"{slot.parameter} has {len(slot.ids)} channels, and {indices.max()} was kept"
                )
            is_kept = torch.zeros_like(is_kept).index_fill(0, indices, True)
        gone.append(slot.ids[~is_kept])
        stays.append(slot.ids[is_kept])
    units = torch.cat(gone).unique() if gone else torch.zeros(0, dtype=torch.int64)
    if missing := sorted(set(kept) - known):
        raise _other_model(folder, f"there are no channels at {missing[0]}")
    if torch.isin(units, torch.cat(stays)).any():
        raise _other_model(folder, "channels that were removed apart are tied together here")
    remember_removal_(captured, labels, units, inputs, granularity)
    remove_units_(captured, labels, units, inputs)


def _must_fit(module: nn.Module, tensors: dict[str, Tensor], folder: Path, only: set[str] | None = None) -> None:
    expected = {name: value for name, value in module.state_dict().items() if not is_mask(module, name)}
    if only is not None:
        expected = {name: value for name, value in expected.items() if name in only}
    if set(expected) != set(tensors):
        missing, extra = sorted(set(expected) - set(tensors)), sorted(set(tensors) - set(expected))
        raise _other_model(folder, f"the file lacks {missing[:3]} and has {extra[:3]} beyond it")
    for name, value in expected.items():
        if (value.shape, value.dtype) != (tensors[name].shape, tensors[name].dtype):
            raise _other_model(
                folder,
                f"{name} is {list(tensors[name].shape)} {tensors[name].dtype} in the file, and "
                f"{list(value.shape)} {value.dtype} in the model",
            )


def _other_model(folder: Path, why: str) -> ArtifactError:
    return ArtifactError(
        f"'{folder}' does not fit this model: {why}. Restore it into an instance of the class that was compressed, "
        "built with the same settings and of the same dtype."
    )
