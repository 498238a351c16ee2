import itertools
import os
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lighten.errors import ConfigError
from lighten.search import allocate as module
from lighten.search.allocate import Term, allocate, total_cost


def random_problem(seed: int) -> tuple[list[np.ndarray], list[Term]]:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 4, size=4)
    harms = [np.sort(rng.random(size)) for size in sizes]
    shapes = [(0,), (0, 1), (1, 2), (2, 3, 0), ()]
    return harms, [Term(axes, rng.random([sizes[i] for i in axes])) for axes in shapes]


@given(seed=st.integers(0, 10_000), share=st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_it_is_as_good_as_trying_everything(seed: int, share: float) -> None:
    harms, terms = random_problem(seed)
    everything = list(itertools.product(*(range(len(options)) for options in harms)))
    costs = [total_cost(terms, picked) for picked in everything]
    limit = min(costs) + share * (max(costs) - min(costs))
    found = allocate(harms, terms, limit)
    best = min(
        sum(options[i] for options, i in zip(harms, picked, strict=True))
        for picked, cost in zip(everything, costs, strict=True)
        if cost <= limit
    )
    assert found.cost == pytest.approx(total_cost(terms, found.picked))
    assert found.cost <= limit * (1 + 1e-6)
    assert found.harm <= best * (1 + 2e-3) + 1e-6  # the gap that the solver is allowed


def test_what_cannot_be_met_says_what_could() -> None:
    with pytest.raises(ConfigError, match=r"cost of 1 cannot be met: the cheapest options cost 3"):
        allocate([np.array([0.0, 1.0])], [Term((0,), np.array([5.0, 3.0]))], 1.0)


def test_a_fixed_cost_counts() -> None:
    harms, free = [np.array([0.0, 1.0])], Term((0,), np.array([5.0, 3.0]))
    assert allocate(harms, [free], 5.0).picked == (0,)
    assert allocate(harms, [free, Term((), np.array(1.0))], 5.0).picked == (1,)


@pytest.mark.skipif(os.name != "posix", reason="elsewhere HiGHS may print")
def test_nothing_that_the_solver_prints_gets_into_data(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    solve = module.milp

    def talks(*args: Any, **kwargs: Any) -> Any:
        os.write(1, b"HighsMipSolverData::transformNewIntegerFeasibleSolution tmpSolver.run();\nof another thread\n")
        return solve(*args, **kwargs)

    monkeypatch.setattr(module, "milp", talks)
    allocate([np.array([0.0, 1.0])], [Term((0,), np.array([5.0, 3.0]))], 4.0)
    assert capfd.readouterr().out == "of another thread\n" * 2  # of finding the cheapest, and of the least harm
