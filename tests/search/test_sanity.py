import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from lighten.errors import TaskError
from lighten.metric import Metric
from lighten.search.config import SearchConfig
from lighten.search.sanity import check_metric, fingerprint, gives_logits
from tests.tiny import TinyNet, images, tiny_task


def test_a_sound_task_passes() -> None:
    check_metric(tiny_task())


def test_a_metric_that_draws_is_found() -> None:
    count = itertools.count()
    noisy = Metric("noisy", lambda outputs, targets: torch.full((len(targets),), float(next(count))))
    with pytest.raises(TaskError, match="'noisy' gives other values for the same outputs"):
        check_metric(tiny_task(metric=noisy))


def test_a_metric_that_looks_at_no_outputs_is_found() -> None:
    constant = Metric("constant", lambda outputs, targets: torch.ones(len(targets)))
    with pytest.raises(TaskError, match="'constant' is 1 for the model's outputs, for their negatives and for noise"):
        check_metric(tiny_task(metric=constant))


def test_a_model_that_draws_is_found() -> None:
    class Drawing(TinyNet):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + torch.randn(4)

    with pytest.raises(TaskError, match="gives other outputs for the same inputs"):
        check_metric(tiny_task(model=Drawing()))


def test_logits_are_told_by_their_targets() -> None:
    assert gives_logits(tiny_task())
    x, y = images(50, 2)
    assert not gives_logits(tiny_task(selection=TensorDataset(x, y.float())))
    regression = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    assert not gives_logits(tiny_task(model=regression, selection=TensorDataset(x, torch.randn(50, 4))))


def test_other_weights_or_settings_are_another_search() -> None:
    one = fingerprint(tiny_task(), SearchConfig())
    assert fingerprint(tiny_task(), SearchConfig(time_limit_s=5.0)) == one
    assert fingerprint(tiny_task(), SearchConfig(lr=0.2)) != one
    assert fingerprint(tiny_task(model=TinyNet()), SearchConfig())["weights"] != one["weights"]
