"""What every registered criterion that looks at more than a channel's weights promises."""

from dataclasses import asdict

import pytest
import torch

from lighten.prune import importance as _importance  # noqa: F401  fills the registry
from lighten.prune.importance.readers import Reader
from lighten.prune.importance.unit_data import UnitData, unit_importance
from lighten.registry import importance

pytestmark = pytest.mark.parametrize("entry", unit_importance, ids=lambda entry: entry.name)
SIZES = {"random": 1.0, "zeros": 0.0, "large": 1e15}


def units(size: float) -> UnitData:
    make = torch.Generator().manual_seed(0)
    products = torch.randn(7, 6, generator=make) * size
    return UnitData(
        rows=torch.randn(6, 10, generator=make) * size,
        products=products,
        squares=products.square().mean(0),
        scale=torch.rand(6, generator=make) * size,
        activity=torch.rand(6, generator=make) * size,
        readers=[reader(size, make)],
    )


def reader(size: float, make: torch.Generator) -> Reader:
    inputs = torch.randn(20, 12, generator=make, dtype=torch.float64) * size
    return Reader(
        weight=torch.randn(3, 12, generator=make, dtype=torch.float64),
        moments=inputs.T @ inputs / 20,
        columns=torch.arange(12).view(6, 2),
    )


def tensors(data: UnitData) -> list[torch.Tensor]:
    own = [value for value in vars(data).values() if isinstance(value, torch.Tensor)]
    return own + [value for reader in data.readers for value in vars(reader).values()]


def test_config_has_defaults_survives_a_dict_and_says_what_it_needs(entry) -> None:
    config = entry.config()
    assert entry.config(**asdict(config)) == config
    assert config.needs in ("gradients", "scale", "activations", "readers")
    assert entry.name not in {plain.name for plain in importance}


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_one_finite_score_a_unit_the_same_twice_from_data_untouched(entry, size: float) -> None:
    data, before = units(size), units(size)
    state = torch.get_rng_state()
    scores = entry.function(data, entry.config())
    assert scores.shape == (6,)
    assert torch.equal(scores, entry.function(data, entry.config()))
    for now, then in zip(tensors(data), tensors(before), strict=True):
        assert torch.equal(now, then)
    assert torch.equal(torch.get_rng_state(), state)
    if size < 1e9:
        assert scores.isfinite().all()
        assert scores.min() >= 0
