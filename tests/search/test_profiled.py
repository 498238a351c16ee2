"""Costs from networks that were profiled."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("llvmlite")

from lighten.runtime.native import load_program
from lighten.runtime.native.profiler import LayerTimes
from lighten.search.allocate import total_cost
from lighten.search.config import SearchConfig
from lighten.search.profiled import N_NETWORKS, Profiled, _features, _left, designs, profile_networks, profiled_terms
from lighten.search.space import Network, choices_of, look_at
from lighten.search.workers import Workers, quiet
from tests.tiny import tiny_task

CONFIG = SearchConfig(round_to=4)


@pytest.fixture(scope="module")
def network() -> Network:
    return look_at(Workers(tiny_task()), CONFIG, quiet)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=40))
def test_designs_are_different_networks_that_reach_both_ends(n_options: list[int]) -> None:
    found = designs(n_options)
    assert len(set(found)) == len(found) <= N_NETWORKS
    assert found[0] == (0,) * len(n_options)
    assert tuple(n - 1 for n in n_options) in found
    for picked in found:
        assert all(0 <= i < n for i, n in zip(picked, n_options, strict=True))


@given(data=st.data())
def test_costs_that_follow_the_law_are_found_from_the_designs(network: Network, data: st.DataObject) -> None:
    draws = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    laws = draws.uniform(0.0, 1.0, (len(network.layers), 4)) * draws.integers(0, 2, (len(network.layers), 4))
    rest = data.draw(st.floats(0.1, 3))

    def by_law(picked: tuple[int, ...]) -> dict[str, float]:
        shares = zip(network.layers, laws, _left(network, picked), strict=True)
        return {layer.name: float(law @ _features(*map(np.array, left))) for layer, law, left in shares}

    networks = designs([len(choice.options) for choice in network.choices])
    profiled = [Profiled(picked, sum(by_law(picked).values()) + rest, by_law(picked)) for picked in networks]
    dense = profiled[0].whole
    for family in ("zeros", "both"):
        choices = choices_of(network, family)
        terms = profiled_terms(network, family, profiled, 5.0)
        assert total_cost(terms, [0] * len(choices)) == pytest.approx(5.0)
        picked = {choice.key: data.draw(st.integers(0, len(choice.options) - 1)) for choice in choices}
        everywhere = tuple(picked.get(choice.key, 0) for choice in network.choices)
        wanted = 5.0 / dense * (sum(by_law(everywhere).values()) + rest)
        assert total_cost(terms, [*picked.values()]) == pytest.approx(wanted, rel=1e-6)


def test_networks_to_profile_are_pruned_as_they_say(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    nonzero: dict[str, int] = {}

    def profile(paths: dict[str, Path], *_: object, **__: object) -> dict[str, LayerTimes]:
        for key, path in paths.items():
            nonzero[key] = sum(int((weight.value != 0).sum()) for weight in load_program(path)[1].weights.values())
        return {key: LayerTimes(1.0, {"conv1": 0.25}) for key in paths}

    workers = Workers(tiny_task())
    monkeypatch.setattr(workers, "profile", profile)
    found = profile_networks(network, CONFIG, quiet, workers)
    assert [each.picked for each in found] == designs([len(choice.options) for choice in network.choices])
    assert found[0] == Profiled(found[0].picked, 1.0, {"conv1": 0.25})
    dense = sum(tiny_task().model.get_parameter(layer.parameter).numel() for layer in network.layers)
    assert nonzero["0"] > 0.9 * dense
    assert nonzero["1"] == min(nonzero.values()) < 0.05 * dense
    assert len(set(nonzero.values())) > N_NETWORKS / 2


def test_profiles_are_taken_on_this_machine(network: Network) -> None:
    found = profile_networks(network, CONFIG, quiet, Workers(tiny_task()))
    terms = profiled_terms(network, "both", found, 2.0)
    options = [len(choice.options) - 1 for choice in choices_of(network, "both")]
    assert total_cost(terms, [0] * len(options)) == pytest.approx(2.0)
    assert 0 < total_cost(terms, options) <= 2.0
    assert all({"conv1", "conv2", "fc"} <= {*each.layers} for each in found)
