"""What every registered method for single weights promises."""

from dataclasses import asdict, replace

import pytest
import torch
from torch import Tensor

from lighten.prune import methods as _methods  # noqa: F401  fills the registries
from lighten.prune.methods.layer_data import LayerData, weight_importance, weight_update
from lighten.prune.patterns import keep_mask, parse_pattern

RANDOM = torch.randn(8, 12, generator=torch.Generator().manual_seed(0))
WEIGHTS = {
    "random": RANDOM,
    "zeros": torch.zeros(8, 12),
    "constant": torch.full((8, 12), 3.0),
    "rounded to bfloat16": RANDOM.bfloat16().float(),
    "one weight": torch.ones(1, 1),
    "large": torch.full((8, 12), 1e15),
    "small": RANDOM * 1e-20,
}
every_method = pytest.mark.parametrize("entry", weight_importance, ids=lambda entry: entry.name)
every_update = pytest.mark.parametrize("entry", weight_update, ids=lambda entry: entry.name)


def layer(weight: Tensor, dead: bool = False) -> LayerData:
    n_out, columns = weight.shape
    make = torch.Generator().manual_seed(1)
    x = torch.zeros(columns, 20) if dead else torch.randn(columns, 20, generator=make)
    gradients = torch.zeros(5, n_out, columns) if dead else torch.randn(5, n_out, columns, generator=make)
    return LayerData(
        weight=weight,
        output_scale=torch.linspace(0, 2, n_out) if n_out > 1 else torch.ones(1),
        input_square=x.square().mean(1)[None],
        hessian=2 * (x @ x.T).double()[None] / 20,
        gradient=gradients.mean(0),
        fisher=gradients.square().mean(0),
    )


def same(one: LayerData, other: LayerData) -> bool:
    return all(torch.equal(v, getattr(other, k)) for k, v in vars(one).items() if isinstance(v, Tensor))


@every_method
def test_config_has_defaults_and_survives_a_dict(entry) -> None:
    config = entry.config()
    assert entry.config(**asdict(config)) == config
    assert getattr(config, "needs", None) in (None, "inputs", "hessian", "gradients")


@every_method
@pytest.mark.parametrize("dead", [False, True], ids=["live", "dead"])
@pytest.mark.parametrize("weight", WEIGHTS.values(), ids=WEIGHTS)
def test_one_finite_score_a_weight_the_same_twice_from_data_untouched(entry, weight: Tensor, dead: bool) -> None:
    data, before = layer(weight.clone(), dead), layer(weight.clone(), dead)
    state = torch.get_rng_state()
    scores = entry.function(data, entry.config())
    assert scores.shape == weight.shape
    assert scores.dtype == torch.float32
    assert scores.isfinite().all()
    assert same(data, before)
    assert torch.equal(scores, entry.function(data, entry.config()))
    assert torch.equal(torch.get_rng_state(), state)


@every_update
@pytest.mark.parametrize("pattern", ["element", "2:4", "block:4x1"])
@pytest.mark.parametrize(
    "weight", [w for w in WEIGHTS.values() if w.numel() > 1], ids=[w for w in WEIGHTS if w != "one weight"]
)
def test_an_update_prunes_exactly_what_it_says(entry, weight: Tensor, pattern: str) -> None:
    form = parse_pattern(pattern)
    data = layer(weight)
    if form.is_n_of_m:
        mask = torch.tensor([True, True, False, False]).repeat(8, 3)
    else:
        units = form.units(weight_importance[entry.name].function(data, entry.config()))
        mask = form.spread(keep_mask(units, units.numel() // 2))
    before = replace(data, weight=weight.clone())
    new, chosen = entry.function(data, form, mask, entry.config())
    assert new.isfinite().all()
    assert (~chosen).sum() == (~mask).sum()
    assert not new[~chosen].any()
    assert same(data, before)
    again, chosen_again = entry.function(data, form, mask, entry.config())
    assert torch.equal(new, again)
    assert torch.equal(chosen, chosen_again)
    if form.is_n_of_m:
        assert (chosen.unflatten(1, (-1, 4)).sum(-1) == 2).all()


@every_update
def test_an_update_is_also_a_method(entry) -> None:
    assert weight_importance[entry.name].config is entry.config
