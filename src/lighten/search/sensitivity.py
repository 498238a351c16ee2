"""Sensitivity: the harm that each option of each choice does alone, measured on calibration data before any training.

Harm is the divergence of the outputs: KL(before ‖ after) of their softmax, averaged over samples, where they are logits
[n, …, classes]; else their mean squared change as a share of their spread. What is kept of a batch serves all options
(see lighten.graph.replay), and the result is kept on disk by a hash of all that went into it.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lighten.cache import recall, remember
from lighten.errors import TaskError
from lighten.graph.capture import CapturedModule
from lighten.graph.replay import Replay
from lighten.prune.calibration import misfit
from lighten.search.choices import Changes
from lighten.task import as_args

VERSION = 2
Harms = dict[str, NDArray[np.float64]]


def measure_harms(
    captured: CapturedModule,
    options: Mapping[str, Sequence[Callable[[], Changes]]],
    batches: Iterable[Any],
    *,
    are_logits: bool,
    on_progress: Callable[[float], None] = lambda share: None,
) -> Harms:
    """By choice, [options]: the harm of each. options: what each one makes of the tensors, when it is asked.

    Never falls along the options of a choice, which are ever more of the same: where a measured one does, the largest
    before it counts. A harm that is not finite is infinite.

    Raises:
        TaskError: there is no batch, or one does not fit the model.
    """
    batches = list(batches)
    if not batches:
        raise TaskError("Sensitivities need calibration data, and got none. Give the task calibration samples.")
    total = {key: np.zeros(len(given)) for key, given in options.items()}
    n, spread = 0, 0.0
    steps, done = len(batches) * sum(map(len, options.values())), 0
    for i, batch in enumerate(batches):
        try:
            replay = Replay(captured, as_args(batch))
        except Exception as error:
            raise TaskError(misfit(i, error)) from error
        before = replay.outputs()
        n += len(before[0])
        spread += sum(float((out - out.mean(0)).square().sum()) for out in before)
        for key, given in options.items():
            for j, change in enumerate(given):
                changes = change()
                total[key][j] += divergence(before, replay.outputs(changes), are_logits) if changes else 0.0
                done += 1
                on_progress(done / steps)
    scale = n if are_logits else max(spread, torch.finfo(torch.float32).tiny)
    return {
        key: np.maximum.accumulate(np.nan_to_num(harms / scale, nan=np.inf, posinf=np.inf))
        for key, harms in total.items()
    }


def lasting(harms: NDArray[np.float64], shares: Sequence[float]) -> NDArray[np.float64]:
    """What allocation minimizes: harms [options] of a choice, as far as training will not mend them.

    Two things are missing from the harm of zeroing. What can be spared best goes first, so each further share does at
    least as much harm as the one before it; where less was measured, the outputs were wrong already and could not get
    more so (ResNet-20 without half of its last stage's channels: 1.10, without seven eighths: 1.61). So each option
    is given at least what the slope before it leads to. And what is left has to learn the part of what goes: the harm
    is divided by the share that is left. Without that, allocation empties a few layers (ResNet-20 in the same predicted
    time, three epochs: 0.021 lost, with it 0.010, equal shares of every layer 0.015).
    """
    gone = np.array(shares)
    found = harms.copy()
    for i in range(2, len(found)):
        slope = (found[i - 1] - found[i - 2]) / (gone[i - 1] - gone[i - 2])
        found[i] = max(found[i], found[i - 1] + slope * (gone[i] - gone[i - 1]))
    lasts: NDArray[np.float64] = found / (1 - gone)
    return lasts


def divergence(before: Sequence[Tensor], after: Sequence[Tensor], are_logits: bool) -> float:
    """Summed over the samples of a batch: KL of softmaxes, averaged over positions, or squared changes."""
    found = 0.0
    for x, y in ((x.detach(), y.detach()) for x, y in zip(before, after, strict=True)):
        if are_logits:
            p, q = (F.log_softmax(side.double(), -1).flatten(0, -2) for side in (x, y))
            found += float(F.kl_div(q, p, reduction="sum", log_target=True)) * len(x) / len(p)
        else:
            found += float((x - y).double().square().sum())
    return max(0.0, found)


def kept_on_disk(about: Mapping[str, Any], tensors: Iterable[Tensor], measure: Callable[[], Harms]) -> Harms:
    """What measure gives, or gave before about the same settings and tensors: weights, calibration data."""
    digest = hashlib.sha256(json.dumps({"version": VERSION, **about}, sort_keys=True).encode())
    for tensor in tensors:
        digest.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    name = digest.hexdigest()[:24]
    stored = recall("sensitivity", name)
    if isinstance(stored, dict):
        return {key: np.array(harms, dtype=np.float64) for key, harms in stored.items()}
    found = measure()
    remember("sensitivity", name, {key: harms.tolist() for key, harms in found.items()})
    return found
