"""What every registered importance criterion promises: rows [n_units, elements] in, [n_units] out, higher = keep."""

from dataclasses import asdict

import pytest
import torch
from torch import Tensor

from lighten.prune import importance as _importance  # noqa: F401  fills the registry
from lighten.registry import importance

pytestmark = pytest.mark.parametrize("entry", importance, ids=lambda entry: entry.name)

INPUTS = {
    "random": torch.randn(6, 10, generator=torch.Generator().manual_seed(0)),
    "zeros": torch.zeros(6, 10),
    "constant": torch.full((6, 10), 3.0),
    "one unit": torch.ones(1, 10),
    "one element": torch.arange(6.0)[:, None],
    "bfloat16": torch.randn(6, 10, generator=torch.Generator().manual_seed(0)).bfloat16(),
    "large": torch.full((6, 10), 1e15),
}


def test_config_has_defaults_and_survives_a_dict(entry) -> None:
    config = entry.config()
    assert entry.config(**asdict(config)) == config


@pytest.mark.parametrize("rows", INPUTS.values(), ids=INPUTS)
def test_one_finite_score_a_unit_the_same_twice_from_rows_untouched(entry, rows: Tensor) -> None:
    before = rows.clone()
    scores = entry.function(rows, entry.config())
    assert scores.shape == (len(rows),)
    assert scores.is_floating_point()
    assert scores.isfinite().all()
    assert torch.equal(rows, before)
    assert torch.equal(scores, entry.function(rows, entry.config()))


def test_no_global_randomness_is_used(entry) -> None:
    state = torch.get_rng_state()
    entry.function(INPUTS["random"], entry.config())
    assert torch.equal(torch.get_rng_state(), state)
