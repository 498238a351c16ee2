"""OBS for channels, against least squares done anew for every choice."""

import copy
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lighten.errors import ConfigError
from lighten.prune import prune
from lighten.prune.importance.obs import OBSChannelsConfig, obs
from lighten.prune.importance.readers import Reader
from lighten.prune.importance.unit_data import UnitData
from lighten.prune.methods.inverse import damped


def reader(n_out: int, n_in: int, columns: list[list[int]], seed: int) -> Reader:
    make = torch.Generator().manual_seed(seed)
    inputs = torch.randn(n_in, n_in, generator=make, dtype=torch.float64) @ torch.randn(
        n_in, 50, generator=make, dtype=torch.float64
    )
    return Reader(
        weight=torch.randn(n_out, n_in, generator=make, dtype=torch.float64),
        moments=inputs @ inputs.T / 50,
        columns=torch.tensor(columns),
    )


def scores(readers: list[Reader], **settings: float) -> Tensor:
    units = UnitData(rows=torch.zeros(len(readers[0].columns), 1), readers=readers)
    return obs(units, OBSChannelsConfig(**settings))


def error_left(reader: Reader, kept: Sequence[int], damping: float) -> float:
    """What least squares on all columns but those of other units leaves of the output's square."""
    moments = damped(reader.moments, damping)
    gone = {c for unit, own in enumerate(reader.columns.tolist()) if unit not in kept for c in own}
    columns = [c for c in range(len(moments)) if c not in gone]
    if not columns:
        return float((reader.weight @ moments * reader.weight).sum())
    target = reader.weight @ moments[:, columns]
    fit = torch.linalg.solve(moments[columns][:, columns], target.T).T
    return float((reader.weight @ moments * reader.weight).sum() - (target * fit).sum())


def slow_costs(readers: list[Reader], n_units: int, damping: float) -> list[float]:
    left, costs, before, least = list(range(n_units)), [0.0] * n_units, 0.0, 0.0
    while left:
        after = {u: sum(error_left(r, [v for v in left if v != u], damping) for r in readers) for u in left}
        chosen = min(left, key=after.__getitem__)
        least = max(least, after[chosen] - before)
        costs[chosen], before = least, after[chosen]
        left.remove(chosen)
    return costs


@given(seed=st.integers(0, 1000), n_units=st.integers(1, 6), n=st.integers(1, 3), damping=st.sampled_from([0.01, 0.3]))
def test_costs_are_those_of_least_squares_done_anew(seed: int, n_units: int, n: int, damping: float) -> None:
    order = torch.randperm(n_units * n, generator=torch.Generator().manual_seed(seed))
    columns = order.view(n_units, n).tolist()
    columns[0] = [columns[0][0]] + [-1] * (n - 1)  # owns less than the others; what is left over is nobody's and stays
    readers = [reader(4, n_units * n, columns, seed), reader(2, n_units * n, columns, seed + 1)]
    found = scores(readers, damping=damping).double()
    # Moments of 50 samples, damped by 1 %: condition numbers stay below 1e6, so float64 leaves 1e-10, the result 1e-7.
    torch.testing.assert_close(
        found, torch.tensor(slow_costs(readers, n_units, damping), dtype=torch.float64), rtol=1e-5, atol=1e-6
    )


def test_fewer_rounds_take_several_at_a_time() -> None:
    one = reader(4, 8, [[i] for i in range(8)], 3)
    at_once = scores([one], rounds=1)
    alone = torch.tensor([error_left(one, [v for v in range(8) if v != u], 0.01) for u in range(8)])
    torch.testing.assert_close(at_once, alone, rtol=1e-4, atol=1e-6)
    assert not torch.equal(scores([one], rounds=8), at_once)
    assert len(scores([one], rounds=3)) == 8


def test_damping_counts_and_bad_settings_are_refused() -> None:
    one = reader(4, 6, [[i] for i in range(6)], 5)
    assert not torch.equal(scores([one], damping=0.01), scores([one], damping=1.0))
    with pytest.raises(ConfigError, match="rounds=0"):
        OBSChannelsConfig(rounds=0)
    with pytest.raises(ConfigError, match="damping=0"):
        OBSChannelsConfig(damping=0)


def doubled() -> nn.Sequential:
    """Channel 4 of the first layer is channel 1 again, times 2: either can go without loss."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3, groups=1), nn.Flatten())
    with torch.no_grad():
        for tensor in (model[0].weight, model[0].bias):
            tensor[4] = 2 * tensor[1]
    return model.double().eval()


def test_what_others_make_up_for_goes_first_and_nothing_is_lost() -> None:
    model, x = doubled(), torch.randn(40, 2, 7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    pruned = prune(model, 1 / 6, importance="obs", refit=True, calibration=[x])
    kept = pruned.get_parameter("0.weight")
    gone = [i for i in range(6) if not any(torch.equal(model[0].weight[i], row) for row in kept)]
    assert len(gone) == 1
    assert gone[0] in (1, 4)
    # Of the damping, 1 % of the mean diagonal, little is left where a channel stands for another one entirely.
    assert (pruned(x) - model(x)).norm() < 0.01 * model(x).norm()


def test_scores_do_not_depend_on_the_size_of_weights_or_inputs() -> None:
    model, x = doubled(), torch.randn(40, 2, 7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    larger = copy.deepcopy(model)
    with torch.no_grad():
        larger[2].weight *= 100
    for ratio in (0.2, 0.5, 0.7):
        first, second = (
            prune(m, ratio, importance="obs", calibration=[x]).get_parameter("0.weight") for m in (model, larger)
        )
        assert torch.equal(first, second)


def test_a_grouped_convolution_reads_by_groups() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3, groups=2), nn.Flatten()).eval()
    with torch.no_grad():
        model[2].weight[:, 2] = 0  # nothing reads channels 2 and 6
    pruned = prune(model, 0.25, importance="obs", calibration=[torch.randn(16, 2, 9, 9)])
    assert torch.equal(pruned.get_parameter("0.weight"), model[0].weight[[0, 1, 3, 4, 5, 7]])


class Attention(nn.Module):
    """Queries and keys of 8 dimensions in 2 heads, with or without the operator for all of it."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        self.q, self.k, self.v = nn.Linear(4, 16, bias=False), nn.Linear(4, 16, bias=False), nn.Linear(4, 6)
        self.out = nn.Linear(6, 4)

    def scores(self, x: Tensor) -> Tensor:
        q, k = (f(x).unflatten(-1, (2, 8)).transpose(1, 2) for f in (self.q, self.k))
        return q @ k.transpose(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k = (f(x).unflatten(-1, (2, 8)).transpose(1, 2) for f in (self.q, self.k))
        v = self.v(x).unflatten(-1, (2, 3)).transpose(1, 2)
        if self.fused:
            y = nn.functional.scaled_dot_product_attention(q, k, v)
        else:
            y = (q @ k.transpose(2, 3) / 8**0.5).softmax(-1) @ v
        return self.out(y.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("fused", [True, False])
def test_dimensions_of_queries_and_keys_go_by_what_scores_lose(fused: bool) -> None:
    torch.manual_seed(0)
    model, x = Attention(fused).double().eval(), torch.randn(20, 5, 4, dtype=torch.float64)
    with torch.no_grad():
        lost = []
        for dim in range(8):  # of both heads
            without = copy.deepcopy(model)
            without.q.weight.view(2, 8, 4)[:, dim] = 0
            lost.append(float((without.scores(x) - model.scores(x)).square().sum()))
    keep = sorted(torch.tensor(lost).argsort()[3:].tolist())
    pruned = prune(model, 0.375, importance="obs", scope="layer", calibration=[x[:8], x[8:]])
    assert torch.equal(pruned.get_parameter("q.weight"), model.q.weight.view(2, 8, 4)[:, keep].flatten(0, 1))


def test_channels_that_nothing_known_reads_are_named() -> None:
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.ConvTranspose2d(6, 2, 3))
    with pytest.raises(ConfigError, match=r"cannot rank the channels of '0'.*exclude=\['0'\]"):
        prune(model, 0.5, importance="obs", calibration=[torch.randn(2, 2, 8, 8)])
