"""SparseGPT and OBS against brute force: subsets, least squares, one step at a time."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lighten.errors import ConfigError
from lighten.prune.methods.inverse import damped, inverse
from lighten.prune.methods.layer_data import LayerData, weight_importance, weight_update
from lighten.prune.methods.obs import OBSConfig, greedy_mask, refit
from lighten.prune.methods.sparsegpt import SparseGPTConfig
from lighten.prune.patterns import keep_mask, n_of_m_mask, parse_pattern
from lighten.prune.reconstruct import nearest_outputs

TINY_DAMPING = 1e-9


def layer(n_out: int = 6, columns: int = 8, seed: int = 0, samples: int = 40) -> LayerData:
    make = torch.Generator().manual_seed(seed)
    x = torch.randn(columns, columns, generator=make) @ torch.randn(columns, samples, generator=make)
    hessian = 2 * (x @ x.T).double() / samples
    return LayerData(
        weight=torch.randn(n_out, columns, generator=make),
        output_scale=torch.ones(n_out),
        input_square=(hessian.diagonal() / 2)[None],
        hessian=hessian[None],
    )


def error(data: LayerData, new: Tensor) -> float:
    """‖(W − Ŵ) X‖² / n."""
    assert data.hessian is not None
    change = data.weight.double() - new.double()
    return float(((change @ data.hessian[0]) * change).sum() / 2)


def least_squares(data: LayerData, mask: Tensor) -> Tensor:
    """The best weights on mask, a normal equation a row."""
    assert data.hessian is not None
    rows = []
    for weight, kept in zip(data.weight.double(), mask, strict=True):
        row = torch.zeros_like(weight)
        row[kept] = torch.linalg.lstsq(data.hessian[0][kept][:, kept], (data.hessian[0] @ weight)[kept]).solution
        rows.append(row)
    return torch.stack(rows)


def pruned(name: str, data: LayerData, granularity: str, ratio: float, **settings: object) -> tuple[Tensor, Tensor]:
    pattern = parse_pattern(granularity)
    config = weight_importance[name].config(damping=TINY_DAMPING, **settings)
    scores = weight_importance[name].function(data, config)
    if pattern.is_n_of_m:
        mask = n_of_m_mask(scores, pattern.keep, pattern.of)
    else:
        units = pattern.units(scores)
        mask = pattern.spread(keep_mask(units, round(ratio * units.numel())))
    return weight_update[name].function(data, pattern, mask, config)


def magnitude_error(data: LayerData, granularity: str, ratio: float) -> float:
    pattern = parse_pattern(granularity)
    if pattern.is_n_of_m:
        mask = n_of_m_mask(data.weight.abs(), pattern.keep, pattern.of)
    else:
        units = pattern.units(data.weight.square())
        mask = pattern.spread(keep_mask(units, round(ratio * units.numel())))
    return error(data, data.weight * mask)


@pytest.mark.parametrize("granularity", ["element", "2:4", "block:2x1"])
@pytest.mark.parametrize("name", ["sparsegpt", "obs"])
@pytest.mark.parametrize("seed", range(4))
def test_exact_counts_zeros_where_masked_and_less_error_than_magnitude(name: str, granularity: str, seed: int) -> None:
    data = layer(seed=seed)
    new, mask = pruned(name, data, granularity, 0.5)
    assert (~mask).sum() == 24
    assert not new[~mask].any()
    if granularity == "2:4":
        assert (mask.unflatten(1, (-1, 4)).sum(-1) == 2).all()
    assert error(data, new) < magnitude_error(data, granularity, 0.5)


@pytest.mark.parametrize("seed", range(4))
def test_obs_ends_at_the_least_squares_solution_of_its_support(seed: int) -> None:
    data = layer(seed=seed)
    new, mask = pruned("obs", data, "element", 0.5)
    torch.testing.assert_close(new.double(), least_squares(data, mask), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_one_sparsegpt_column_is_least_squares_over_the_columns_to_come(seed: int) -> None:
    # If only the first column goes, every other column is still to come: the update is the exact one.
    data = layer(seed=seed)
    mask = torch.ones(6, 8, dtype=torch.bool)
    mask[:, 0] = False
    cheap = replace(data, weight=data.weight.clone())
    cheap.weight[:, 0] = 1e-3  # so that the first column is what the scores choose
    config = SparseGPTConfig(damping=TINY_DAMPING)
    new, chosen = weight_update["sparsegpt"].function(cheap, parse_pattern("block:6x1"), mask, config)
    assert torch.equal(chosen, mask)
    torch.testing.assert_close(new.double(), least_squares(cheap, mask), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_sparsegpt_is_never_better_than_least_squares_on_its_support(seed: int) -> None:
    data = layer(seed=seed)
    new, mask = pruned("sparsegpt", data, "element", 0.5)
    assert error(data, new) >= error(data, least_squares(data, mask)) * (1 - 1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_the_first_weight_that_obs_takes_is_the_best_single_one(seed: int) -> None:
    data = layer(n_out=3, columns=5, seed=seed)
    _, mask = pruned("obs", data, "element", 1 / 15)

    def without(place: tuple[int, int]) -> float:
        trial = torch.ones(3, 5, dtype=torch.bool)
        trial[place] = False
        return error(data, least_squares(data, trial))

    best = min(itertools.product(range(3), range(5)), key=without)
    assert [tuple(place) for place in (~mask).nonzero().tolist()] == [best]


def test_obs_takes_its_steps_as_a_slow_loop_does() -> None:
    data = layer(n_out=4, columns=40, samples=200)  # wide enough that the state is compacted on the way
    assert data.hessian is not None
    inv = inverse(data.hessian[0], 0.01)
    mask = torch.ones(4, 40, dtype=torch.bool)
    weights, inverses = data.weight.double(), inv.expand(4, -1, -1).clone()
    for _ in range(120):
        price = (weights.square() / inverses.diagonal(dim1=1, dim2=2)).masked_fill(~mask, torch.inf)
        row, column = divmod(int(price.argmin()), 40)
        weights[row] -= weights[row, column] / inverses[row, column, column] * inverses[row, :, column]
        line = inverses[row, :, column].clone()
        inverses[row] -= line[:, None] * line[None, :] / line[column]
        inverses[row, column, column] = 1
        weights[row, column] = 0
        mask[row, column] = False
    assert torch.equal(greedy_mask(data.weight.double(), inv, parse_pattern("element"), 120), mask)
    expected = weights.masked_fill(~mask, 0)
    torch.testing.assert_close(refit(data.weight.double(), damped(data.hessian[0], 0.01), mask), expected)


def test_groups_of_a_convolution_have_their_own_hessian() -> None:
    one, two = layer(seed=0), layer(seed=1)
    both = LayerData(
        weight=torch.cat([one.weight, two.weight]),
        output_scale=torch.ones(12),
        groups=2,
        hessian=torch.cat([one.hessian, two.hessian]),
    )
    pattern, config = parse_pattern("2:4"), SparseGPTConfig()
    mask = torch.ones(12, 8, dtype=torch.bool)
    apart = [weight_update["sparsegpt"].function(part, pattern, mask[:6], config)[0] for part in (one, two)]
    assert torch.equal(weight_update["sparsegpt"].function(both, pattern, mask, config)[0], torch.cat(apart))


@pytest.mark.parametrize("name", ["sparsegpt", "obs"])
def test_an_input_that_is_always_zero_costs_nothing(name: str) -> None:
    data = layer()
    assert data.hessian is not None
    data.hessian[0, 3] = data.hessian[0, :, 3] = 0
    config = weight_importance[name].config()
    scores = weight_importance[name].function(data, config)
    assert scores.isfinite().all()
    assert scores[:, 3].max() < scores[:, [0, 1, 2, 4, 5, 6, 7]].median()


def test_settings_are_noticed() -> None:
    data = layer(columns=32, samples=100)
    by_block = [pruned("sparsegpt", data, "element", 0.5, block_size=size)[0] for size in (1, 32)]
    assert not torch.equal(*by_block)
    scores = weight_importance["sparsegpt"].function
    assert not torch.equal(scores(data, SparseGPTConfig(damping=1.0)), scores(data, SparseGPTConfig()))
    scores = weight_importance["obs"].function
    assert not torch.equal(scores(data, OBSConfig(damping=1.0)), scores(data, OBSConfig()))


def test_what_is_too_wide_or_not_possible_is_refused() -> None:
    with pytest.raises(ConfigError, match="a layer has 8, above max_columns=4"):
        weight_importance["obs"].function(layer(), OBSConfig(max_columns=4))
    with pytest.raises(ConfigError, match=r"cannot do block:2x2\. Use block:2x1"):
        pruned("obs", layer(), "block:2x2", 0.5)
    with pytest.raises(ConfigError, match="damping=0 must be above 0"):
        OBSConfig(damping=0)
    with pytest.raises(ConfigError, match="block_size=0 is below 1"):
        SparseGPTConfig(block_size=0)


def test_best_dense_makes_up_for_another_input() -> None:
    make = torch.Generator().manual_seed(0)
    x = torch.randn(5, 100, generator=make, dtype=torch.float64)
    mixed = torch.randn(5, 5, generator=make, dtype=torch.float64) @ x
    weight = torch.randn(3, 5, generator=make, dtype=torch.float64)
    new = nearest_outputs(weight, mixed @ mixed.T / 100, x @ mixed.T / 100, 1e-9, weight)
    torch.testing.assert_close(new @ mixed, weight @ x, rtol=1e-4, atol=1e-4)
    same = nearest_outputs(weight, x @ x.T, x @ x.T, 0.1, weight)
    torch.testing.assert_close(same, weight)
