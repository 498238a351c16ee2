"""Checkpoints of a training: what is killed and started again ends with the same bits as what was left alone.

One safetensors file holds the tensors (weights, buffers, masks, the optimizer's, the average's, those of the best
epoch, the states of the random generators) and, in its header, JSON with the rest. It is written beside its place and
renamed, so whenever the process dies there is a whole checkpoint, the last one or the one before.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from lighten.errors import ArtifactError, ConfigError
from lighten.graph.capture import CapturedModule
from lighten.plan import Plan
from lighten.prune.masks import MaskedModule, is_mask, mask_weights, masks
from lighten.recover.config import FineTuneConfig
from lighten.recover.parallel import gathered, place, wait_for_all
from lighten.recover.state import State
from lighten.recover.weights import copy_into_, named_tensors

FORMAT_VERSION = 1
KEY = "lighten_training"


def describe(state: State, config: FineTuneConfig, n_samples: int) -> dict[str, Any]:
    """What a training has to have in common with the one that it goes on with, as plain data."""
    tensors = {name: [str(t.dtype), list(t.shape)] for name, t in _tensors(state.model).items()}
    digest = hashlib.sha256(json.dumps(tensors, sort_keys=True).encode()).hexdigest()
    settings = asdict(config) | {
        "optimizer class": type(state.optimizer).__name__,
        "training samples": n_samples,
        "processes": place()[1],
    }
    described: dict[str, Any] = json.loads(json.dumps(settings | {"parameter names and shapes": digest}))
    return described


def write(path: Path, state: State, described: dict[str, Any]) -> None:
    """Store state at path, in place of an earlier checkpoint; of several processes all call, and the first writes.

    Raises:
        ArtifactError: the file cannot be written. ConfigError: the optimizer keeps what is no plain data.
    """
    tensors = {"random/order": state.order_state}
    tensors |= {f"random/torch/{rank}": drawn for rank, drawn in enumerate(gathered(torch.get_rng_state()))}
    tensors |= {f"model/{name}": tensor for name, tensor in _tensors(state.model).items()}
    tensors |= {f"mask/{name}": mask for name, mask in masks(state.model).items()}
    tensors |= {f"best/{name}": tensor for name, tensor in (state.best or {}).items()}
    if state.average is not None:
        tensors |= {f"ema/{name}": tensor for name, tensor in state.average.tensors.items()}
    header = {
        "version": FORMAT_VERSION,
        "training": described,
        "step": state.step,
        "scores": state.scores,
        "ema_updates": None if state.average is None else state.average.n_updates,
        "optimizer": _packed(state.optimizer.state_dict(), tensors),
        "plan": state.model.plan.to_dict() if isinstance(state.model, CapturedModule) else None,
    }
    if place()[0] == 0:
        _write_whole(path, tensors, header)
    wait_for_all()


def _write_whole(path: Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    # safetensors stores no memory twice, and only what lies in one piece.
    whole = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    data = safetensors.torch.save(whole, metadata={KEY: json.dumps(header)})
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise ArtifactError(
            f"Cannot write the checkpoint '{path}' of {len(data)} bytes: {error.strerror or error}. Free some space "
            "or choose another place; an earlier checkpoint there is untouched."
        ) from error


def resume_(path: Path, state: State, described: dict[str, Any]) -> None:
    """Bring state, and torch's random generator, to where the checkpoint at path was written; without one do nothing.

    Raises:
        ArtifactError: the file is damaged or no checkpoint. ConfigError: it is of another training.
    """
    if not path.exists():
        return
    tensors, header = _read(path)
    _check_same(path, header["training"], described)
    if isinstance(state.model, MaskedModule):
        mask_weights(state.model, _under("mask/", tensors))
    copy_into_(state.model, _under("model/", tensors))
    if isinstance(state.model, CapturedModule):
        state.model.plan = Plan.from_dict(header["plan"])
    state.optimizer.load_state_dict(_laid_out(_unpacked(header["optimizer"], tensors), state.optimizer))
    if state.average is not None:
        state.average.tensors, state.average.n_updates = _under("ema/", tensors), header["ema_updates"]
    state.best = _under("best/", tensors) or None
    state.step, state.scores = header["step"], header["scores"]
    state.order_state = tensors["random/order"]
    state.order.set_state(state.order_state)
    torch.set_rng_state(tensors[f"random/torch/{place()[0]}"])


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """All but masks, which come and go."""
    return {name: tensor for name, tensor in named_tensors(model).items() if not is_mask(model, name)}


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})[KEY])
            if header["version"] != FORMAT_VERSION:
                raise ArtifactError(
                    f"The checkpoint '{path}' has version {header['version']}; this lighten reads {FORMAT_VERSION}."
                )
            return {name: file.get_tensor(name) for name in file.keys()}, header  # noqa: SIM118  it is no mapping
    except (SafetensorError, OSError, KeyError, json.JSONDecodeError) as error:
        raise ArtifactError(
            f"'{path}' is no checkpoint of a training, or is damaged: {error}. Delete it to start anew, or choose "
            "another place."
        ) from error


def _check_same(path: Path, stored: dict[str, Any], described: dict[str, Any]) -> None:
    changed = [key for key in {**stored, **described} if stored.get(key) != described.get(key)]
    if not changed:
        return
    said = [f"{key} {stored.get(key)}, here {described.get(key)}" for key in changed if "shapes" not in key]
    said += [f"other {key}" for key in changed if "shapes" in key]
    raise ConfigError(
        f"The checkpoint '{path}' is of another training: it has {'; '.join(said)}. Go on with what it was written by, "
        "or delete it to start anew."
    )


def _packed(value: Any, tensors: dict[str, Tensor]) -> Any:
    """value as JSON that keeps keys which are no text, tuples and, by their names in tensors, tensors."""
    if isinstance(value, Tensor):
        name = f"optimizer/{len(tensors)}"
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[key, _packed(item, tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        return {type(value).__name__: [_packed(item, tensors) for item in value]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ConfigError(
        f"The optimizer keeps a {type(value).__name__}, which a checkpoint cannot hold: tensors, numbers, text, lists "
        "and dicts can be. Train without checkpoint=, or with another optimizer."
    )


def _unpacked(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    [(kind, content)] = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _unpacked(item, tensors) for key, item in content}
    items = [_unpacked(item, tensors) for item in content]
    return tuple(items) if kind == "tuple" else items


def _laid_out(stored: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """stored with tensors of a parameter's shape in the memory layout of that parameter, as the optimizer had them."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, kept in stored["state"].items():
        for name, value in kept.items():
            if isinstance(value, Tensor) and value.shape == parameters[index].shape:
                kept[name] = torch.empty_like(parameters[index], dtype=value.dtype).copy_(value)
    return stored
