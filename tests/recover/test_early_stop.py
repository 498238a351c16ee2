import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lighten.errors import ConfigError
from lighten.metric import Metric
from lighten.prune.gradual import PruneStep, prune_gradually
from lighten.recover.early_stop import best_epoch, has_stalled, selection_score
from lighten.recover.finetune import FineTuneConfig, Recovery, recover
from tests.recover.test_finetune import PLAIN, data, flat, seeded
from tests.tiny import tiny_task


def test_the_rules_by_hand() -> None:
    assert best_epoch([]) is best_epoch([None, None]) is None
    assert best_epoch([None, 0.5, 0.7, 0.7, None]) == 3  # of equals the first
    assert not has_stalled([0.5], 1)
    assert has_stalled([0.5, 0.5], 1)
    assert not has_stalled([0.5, 0.5], 2)
    assert has_stalled([0.5, None, 0.4, 0.5], 2)
    assert not has_stalled([0.5, 0.4, 0.6], 2)


@given(st.lists(st.none() | st.floats(-1, 1)), st.integers(1, 5))
def test_training_that_has_not_stalled_found_its_best_lately(scores: list[float | None], patience: int) -> None:
    known = [score for score in scores if score is not None]
    if known and not has_stalled(scores, patience):
        assert best_epoch(known) > len(known) - patience  # type: ignore[operator]


def scored(values: list[float | None], **changes: Any) -> tuple[Recovery, list[torch.Tensor]]:
    """A training whose epochs score these values, and the weights after each."""
    seen: list[torch.Tensor] = []
    given = iter(values)

    def score(model: nn.Module) -> float | None:
        assert not model.training
        torch.rand(1)  # what watches must not change what is watched
        seen.append(flat(model))
        return next(given)

    config = replace(PLAIN, epochs=len(values), **changes)
    return recover(seeded(), data(), F.cross_entropy, config, score=score), seen


def test_the_best_epoch_is_returned() -> None:
    found, seen = scored([0.1, 0.9, 0.5])
    assert (found.scores, found.best, found.stopped_early) == ((0.1, 0.9, 0.5), 2, False)
    assert torch.equal(flat(found.model), seen[1])
    assert not torch.equal(seen[1], seen[2])
    assert not found.model.training
    plain = recover(seeded(), data(), F.cross_entropy, replace(PLAIN, epochs=3))
    assert torch.equal(flat(plain.model), seen[2])
    assert (plain.scores, plain.best, plain.stopped_early) == ((None, None, None), None, False)


def test_buffers_are_those_of_the_best_epoch() -> None:
    longer, _ = scored([0.9, 0.5])
    kept = longer.model.get_buffer("norm.num_batches_tracked")
    assert kept.item() == 4  # steps of an epoch


def test_training_ends_once_nothing_better_comes() -> None:
    found, seen = scored([0.1, 0.9, 0.9, 0.2, 1.0], patience=2)
    assert (found.scores, found.best, found.stopped_early) == ((0.1, 0.9, 0.9, 0.2), 2, True)
    assert torch.equal(flat(found.model), seen[1])


def test_an_epoch_without_a_score_cannot_be_chosen() -> None:
    found, seen = scored([None, 0.3, 0.2], channels_last=True)
    assert found.best == 2
    assert torch.equal(flat(found.model), seen[1])
    nothing, seen = scored([None, None])
    assert nothing.best is None
    assert torch.equal(flat(nothing.model), seen[1])


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ConfigError, match="score after epoch 2 is NaN"):
        scored([0.5, math.nan])
    with pytest.raises(ConfigError, match="patience=2 without a score"):
        recover(seeded(), data(), F.cross_entropy, replace(PLAIN, patience=2))


@pytest.mark.parametrize(("higher", "sign"), [(True, 1), (False, -1)])
def test_the_score_of_a_task_rises_as_it_gets_better(higher: bool, sign: int) -> None:
    squared: Callable[[Any, Any], torch.Tensor] = lambda outputs, targets: (outputs[:, 0] - targets).square()  # noqa: E731
    task = tiny_task(metric=Metric("squared error", squared, higher_is_better=higher))
    images, targets = task.selection.tensors  # type: ignore[attr-defined]
    with torch.no_grad():
        expected = squared(task.model(images), targets).mean().item()
    assert selection_score(task)(task.model) == pytest.approx(sign * expected, rel=1e-5)


def test_while_the_ratio_rises_no_epoch_is_chosen() -> None:
    told: list[float] = []
    pruned: list[PruneStep] = []

    def score(model: nn.Module) -> float:
        told.append(float(sum((p == 0).sum() for p in model.parameters())))
        return -len(told)  # the first is the best

    config = FineTuneConfig(epochs=5, lr=0.02, batch_size=64)
    how: dict[str, Any] = {"granularity": "element", "importance": "l1", "schedule": "gradual:3"}
    found = prune_gradually(tiny_task(), 0.8, fine_tuning=config, score=score, on_prune=pruned.append, **how)
    # The last pruning comes at 0.6 · 2 / 3 of 5 epochs, which is where the second of them ends, before the third.
    assert len(told) == 3
    assert found.plan.ratio == 0.8
    masked = sum(p.numel() for p in found.parameters() if p.ndim > 1)
    assert sum(int((p == 0).sum()) for p in found.parameters() if p.ndim > 1) == round(0.8 * masked)
