"""What every registered range observer promises: it sees tensors, and answers (low, high) with low <= 0 <= high."""

from dataclasses import asdict

import pytest
import torch
from torch import Tensor

from lighten.quantize import observers as _observers  # noqa: F401  fills the registry
from lighten.registry import observer

pytestmark = pytest.mark.parametrize("entry", observer, ids=lambda entry: entry.name)

RANDOM = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0))
INPUTS = {
    "random": RANDOM,
    "zeros": torch.zeros(2, 3),
    "constant": torch.full((2, 3), 3.0),
    "negative constant": torch.full((2, 3), -3.0),
    "scalar": torch.tensor(2.0),
    "one-sided": RANDOM.abs(),
    "bfloat16": RANDOM.bfloat16(),
    "float16": RANDOM.half(),
    "denormal": torch.full((2,), 1e-44),
    "large": torch.tensor([-1e38, 1e38]),
    "not contiguous": RANDOM.transpose(0, 2),
    "requires grad": RANDOM.clone().requires_grad_(),
}


def observed(entry, *seen: Tensor) -> tuple[float, float]:
    watching = entry.function(entry.config())
    for x in seen:
        watching.observe(x)
    return watching.range()


def test_config_has_defaults_and_survives_a_dict(entry) -> None:
    config = entry.config()
    assert entry.config(**asdict(config)) == config


@pytest.mark.parametrize("x", INPUTS.values(), ids=INPUTS)
def test_range_is_within_what_was_seen_and_holds_zero(entry, x: Tensor) -> None:
    before = x.detach().clone()
    low, high = observed(entry, x)
    assert min(0.0, float(before.min())) <= low <= 0 <= high <= max(0.0, float(before.max()))
    if before.any():
        assert low < high
    assert torch.equal(x, before)
    assert (low, high) == observed(entry, x)


def test_a_narrower_batch_never_narrows_the_range_to_itself(entry) -> None:
    low, high = observed(entry, RANDOM, RANDOM / 100)
    assert high - low > (RANDOM.max() - RANDOM.min()) / 3


def test_nothing_seen_is_the_range_of_zero(entry) -> None:
    assert observed(entry) == (0.0, 0.0)


def test_observers_share_nothing(entry) -> None:
    first, second = (entry.function(entry.config()) for _ in range(2))
    first.observe(RANDOM)
    assert second.range() == (0.0, 0.0)
