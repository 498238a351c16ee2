"""save: a compressed module as `model.safetensors` and `plan.yaml`; see lighten.checkpoint.reader for the way back.

The header of the file says, as JSON under "lighten", how each tensor is laid out (lighten.checkpoint.sparse), which
weights are masked, what inputs the model takes, which channels each removal kept (the indices are tensors) and which
residual blocks it dropped.
"""

import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from lighten.checkpoint.describe import describe
from lighten.checkpoint.sparse import BITMASK, choose_layout, compress, nonzero_bits
from lighten.errors import ArtifactError, ConfigError
from lighten.graph.capture import CapturedModule
from lighten.plan import Plan
from lighten.prune.history import known_inputs, removals
from lighten.prune.masks import is_mask, masks
from lighten.runtime.folder import write_folder

TENSORS, PLAN = "model.safetensors", "plan.yaml"
FORMAT_VERSION = 1


def save(model: nn.Module, folder: str | Path, *, example_inputs: tuple[Any, ...] | None = None) -> None:
    """Write model to folder, whole or not at all; an earlier checkpoint there is replaced.

    Zeros are not stored where that saves space. example_inputs: positional arguments of model, for a captured module
    that was not made by lighten.prune; only their shapes and dtypes are kept.

    Raises:
        ConfigError: channels or blocks were taken out of model without keeping which, or its inputs, which are needed,
        are unknown.
        ArtifactError: folder holds other content, or cannot be written.
    """
    folder = Path(folder).absolute()
    check_folder(folder)
    tensors, header, plan = contents(model, example_inputs)

    def fill(new: Path) -> None:
        safetensors.torch.save_file(tensors, new / TENSORS, metadata={"lighten": json.dumps(header)})
        plan.save(new / PLAN)

    try:
        write_folder(folder, fill, _must_be_ours)
    except OSError as error:
        raise ArtifactError(
            f"Cannot write '{folder}': {error.strerror or error}. What was there before is untouched. Free the space "
            "or fix the permission, then try again."
        ) from error


def contents(
    model: nn.Module, example_inputs: tuple[Any, ...] | None = None
) -> tuple[dict[str, Tensor], dict[str, Any], Plan]:
    """What save writes: tensors by name, the header, and the plan."""
    header: dict[str, Any] = {"version": FORMAT_VERSION, "captured": isinstance(model, CapturedModule), "tensors": {}}
    plan = Plan()
    tensors: dict[str, Tensor] = {}
    if isinstance(model, CapturedModule):
        plan = model.plan
        header |= _trace(model, example_inputs, tensors)
    masked = masks(model)
    seen: dict[tuple[int, torch.Size, tuple[int, ...]], str] = {}
    for name, tensor in model.state_dict().items():
        if is_mask(model, name):
            continue  # the bits of its weight say the same
        key = (tensor.data_ptr(), tensor.shape, tensor.stride())
        if tensor.numel() and key in seen:  # tied; safetensors stores no memory twice
            header["tensors"][name] = {"same_as": seen[key]}
            continue
        seen[key] = name
        header["tensors"][name] = _add(tensors, name, tensor.detach().cpu(), masked.get(name))
    return tensors, header, plan


def _add(tensors: dict[str, Tensor], name: str, tensor: Tensor, mask: Tensor | None) -> dict[str, Any]:
    about: dict[str, Any] = {"layout": BITMASK if mask is not None else choose_layout(tensor)}
    if about["layout"] != BITMASK:
        tensors[name] = tensor.contiguous().clone()
        return about
    bits, values = compress(tensor, nonzero_bits(tensor) if mask is None else mask.cpu())
    tensors[f"{name}#bits"], tensors[f"{name}#values"] = bits, values
    return about | {"shape": list(tensor.shape), "masked": mask is not None}


def _trace(model: CapturedModule, example_inputs: tuple[Any, ...] | None, tensors: dict[str, Tensor]) -> dict[str, Any]:
    inputs = known_inputs(model) if example_inputs is None else example_inputs
    if inputs is None:
        raise ConfigError(
            "It is not known what inputs the model takes, which restoring needs. Pass save(…, example_inputs=…)."
        )
    counted = any(layer.granularity and _is_structured(layer.granularity) for layer in model.plan.layers.values())
    done = removals(model)
    if counted and not done:
        raise ConfigError(
            "Channels or blocks were taken out of this module, but it was not kept which, so it could not be restored. "
            "Export it instead, or store its weights with safetensors."
        )
    for step, removal in enumerate(done):
        for (parameter, axis), kept in removal.kept.items():
            tensors[f"#kept/{step}/{axis}/{parameter}"] = kept.int()
    steps = [{"granularity": removal.granularity, "dropped": removal.dropped} for removal in done]
    return {"inputs": describe(inputs), "removals": steps}


def _is_structured(granularity: str) -> bool:
    return granularity != "element" and ":" not in granularity


def check_folder(folder: Path) -> None:
    """Raise ArtifactError where save would not write to folder."""
    if folder.is_symlink() or folder.exists():
        _must_be_ours(folder)


def _must_be_ours(folder: Path) -> None:
    if folder.is_symlink() or not folder.is_dir():
        raise ArtifactError(f"'{folder}' exists and is not a folder. Choose another.")
    found = {path.name for path in folder.iterdir()}
    if found and not found <= {TENSORS, PLAN}:
        foreign = sorted(found - {TENSORS, PLAN})
        raise ArtifactError(
            f"'{folder}' exists with other content ({', '.join(foreign[:5])}), and is left alone. "
            "Choose another folder."
        )
