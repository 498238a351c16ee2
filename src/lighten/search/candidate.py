"""A candidate: one version of the model, and everything that was measured of it. It can be stored and read again."""

import json
import math
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from lighten.errors import ArtifactError
from lighten.metric import Interval, Metric, Scores, paired_drop
from lighten.plan import Plan
from lighten.runtime.folder import write_folder
from lighten.runtime.measure import LatencySample

ABOUT = "candidate.json"


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One version of the model. ratio: share of the channels that went; sparsity: of the weights that are zero.

    n_params, macs: that are not zero. path: its artifact, None if it failed, and then note says why. scores: on
    selection data. drop: from them, with its 95 % interval; drop_bound: the end of the one-sided one, which the drop
    does not exceed. predicted_ms: of the search's tables, or for a device that is described.
    latency: measured, or that prediction.
    """

    name: str
    ratio: float = 0.0
    scheme: str | None = None
    sparsity: float = 0.0
    epochs: int = 0
    n_params: int = 0
    macs: int = 0
    path: Path | None = None
    size_bytes: int = 0
    plan: Plan | None = None
    scores: Scores | None = None
    drop: Interval | None = None
    drop_bound: float = math.inf
    predicted_ms: float | None = None
    latency: LatencySample | None = None
    note: str = ""


def compared(candidate: Candidate, scores: Scores, baseline: Scores) -> Candidate:
    """candidate with its scores, and its drop from baseline on the same samples."""
    bound = paired_drop(baseline, scores, level=0.9).high
    return replace(candidate, scores=scores, drop=paired_drop(baseline, scores), drop_bound=bound)


def store(candidates: list[Candidate], folder: Path) -> None:
    """Write them to folder, all or nothing, artifacts and scores included; latency is not kept, it is of the moment.

    Raises:
        OSError: from the file system.
    """

    def fill(to: Path) -> None:
        entries = []
        for i, candidate in enumerate(candidates):
            if candidate.path is not None and candidate.scores is not None:
                shutil.copytree(candidate.path, to / str(i))
                save_file(_tensors(candidate.scores), to / f"{i}.safetensors")
            entries.append(_described(candidate))
        (to / ABOUT).write_text(json.dumps(entries), encoding="utf-8")

    write_folder(folder, fill, lambda old: None)


def stored(folder: Path, metric: Metric, baseline: Scores) -> list[Candidate]:
    """What store wrote.

    Raises:
        ArtifactError: something is missing or damaged.
    """
    try:
        entries = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        found = []
        for i, entry in enumerate(entries):
            plan = entry.pop("plan")
            candidate = Candidate(**entry)
            if plan is not None:
                tensors = load_file(folder / f"{i}.safetensors")
                scores = Scores(
                    metric, int(tensors.pop("n")), *(tensors.get(x) for x in ("values", "outputs", "targets"))
                )
                candidate = replace(candidate, path=folder / str(i), plan=Plan.from_dict(plan))
                candidate = compared(candidate, scores, baseline)
            found.append(candidate)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ArtifactError(
            f"The trial in '{folder}' cannot be read: {error}. Delete the folder, then resume."
        ) from error
    return found


def _described(candidate: Candidate) -> dict[str, Any]:
    kept = ("name", "ratio", "scheme", "sparsity", "epochs", "n_params", "macs", "size_bytes", "predicted_ms", "note")
    plan = None if candidate.plan is None or candidate.scores is None else candidate.plan.to_dict()
    return {**{name: getattr(candidate, name) for name in kept}, "plan": plan}


def _tensors(scores: Scores) -> dict[str, torch.Tensor]:
    given = {"values": scores.values, "outputs": scores.outputs, "targets": scores.targets}
    return {"n": torch.tensor(scores.n), **{k: v.contiguous() for k, v in given.items() if v is not None}}
