"""Allocate: of every choice one option, with the least harm that a limit of cost allows. An integer programme.

Choices are independent of each other in harm; that harms add up is the assumption of all such methods (Dong et al.,
"HAWQ-V2", arXiv:1911.03852, sec. 3.2). In cost they meet: what a layer takes depends on the channels that come in and
on those that go out. So a term of the cost is a table over the options of one, two or three choices. In the programme
every entry of such a table has a variable whose sums along the table's axes are the variables of the choices; where
those are whole, the entries are, and only the choices have to be declared so.
Solved by HiGHS: Huangfu & Hall, "Parallelizing the dual revised simplex method", Math. Prog. Comp. 10 (2018).
"""

import contextlib
import ctypes
import itertools
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, milp

from lighten.errors import ConfigError

GAP = 1e-3  # of the optimum: harms are measured to a few per cent at best
LIMIT_S = 30.0
NO_LESS = 1 + 1e-9


@dataclass(frozen=True)
class Term:
    """A summand of the cost. choices: their indices, none twice. cost: [options of the first, of the second, …]."""

    choices: tuple[int, ...]
    cost: NDArray[np.float64]


@dataclass(frozen=True)
class Allocation:
    """picked: the option of each choice. harm, cost: their sums."""

    picked: tuple[int, ...]
    harm: float
    cost: float


def allocate(harms: Sequence[NDArray[np.float64]], terms: Sequence[Term], limit: float) -> Allocation:
    """The options with the least sum of harms whose terms sum up to limit at most.

    harms: of each choice, [options], 0 or more.

    Raises:
        ConfigError: not even the cheapest options are within limit; the message says what they cost.
    """
    if (least := cheapest(harms, terms).cost) > limit * NO_LESS:
        raise ConfigError(f"A cost of {limit:.4g} cannot be met: the cheapest options cost {least:.4g}.")
    return _solve(harms, terms, limit)


def cheapest(harms: Sequence[NDArray[np.float64]], terms: Sequence[Term]) -> Allocation:
    """The options with the least sum of terms, whatever their harm."""
    return _solve(harms, terms, None)


def total_cost(terms: Sequence[Term], picked: Sequence[int]) -> float:
    """What these options cost."""
    return float(sum(term.cost[tuple(picked[choice] for choice in term.choices)] for term in terms))


def _solve(harms: Sequence[NDArray[np.float64]], terms: Sequence[Term], limit: float | None) -> Allocation:
    """limit None: the least cost instead of the least harm."""
    starts = np.cumsum([0, *(len(options) for options in harms)])
    n_choices = int(starts[-1])
    entries = np.cumsum([n_choices, *(term.cost.size for term in terms)])
    n = int(entries[-1])
    cost = np.concatenate([np.zeros(n_choices), *(term.cost.ravel() for term in terms)])
    harm = np.concatenate([*harms, np.zeros(n - n_choices)])
    rows: list[tuple[dict[int, float], float]] = [
        (dict.fromkeys(range(low, high), 1.0), 1.0) for low, high in itertools.pairwise(starts)
    ]
    for term, start in zip(terms, entries[:-1], strict=True):
        places = start + np.arange(term.cost.size).reshape(term.cost.shape)
        if not term.choices:
            rows.append(({int(places): 1.0}, 1.0))
        for axis, choice in enumerate(term.choices):
            for option in range(term.cost.shape[axis]):
                together = dict.fromkeys(places.take(option, axis).ravel().tolist(), 1.0)
                rows.append(({**together, int(starts[choice]) + option: -1.0}, 0.0))
    matrix, right = _matrix(rows, n), np.array([value for _, value in rows])
    constraints = [LinearConstraint(matrix, right, right)]
    aim = cost
    if limit is not None:
        aim = harm
        constraints.append(LinearConstraint(sparse.csr_array(cost[None] / limit), ub=1.0))
    whole = np.concatenate([np.ones(n_choices), np.zeros(n - n_choices)])
    with _hushed():
        solved = milp(
            aim / max(aim.max(), np.finfo(float).tiny),  # HiGHS takes what is below 1e-7 for zero
            integrality=whole,
            bounds=Bounds(0, 1),
            constraints=constraints,
            options={"mip_rel_gap": GAP, "time_limit": LIMIT_S},
        )
    if solved.x is None:
        raise ConfigError(f"The integer programme of {len(harms)} choices found nothing: {solved.message}")
    picked = tuple(int(solved.x[low:high].argmax()) for low, high in itertools.pairwise(starts))
    total = sum(float(options[i]) for options, i in zip(harms, picked, strict=True))
    return Allocation(picked, total, total_cost(terms, picked))


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Without what HiGHS, told to be quiet, still prints when it repairs a solution: stdout is for data.

    It prints past Python, so the process's own stdout is turned away; what others print meanwhile follows.
    """
    if os.name != "posix":
        yield
        return
    flush = ctypes.CDLL(None).fflush
    with tempfile.TemporaryFile() as said:
        stdout = os.dup(1)
        os.dup2(said.fileno(), 1)
        try:
            yield
        finally:
            flush(None)
            os.dup2(stdout, 1)
            os.close(stdout)
            said.seek(0)
            for line in said:
                if not line.startswith(b"Highs"):
                    os.write(1, line)


def _matrix(rows: Sequence[tuple[dict[int, float], float]], n: int) -> sparse.csr_array:
    values = [value for row, _ in rows for value in row.values()]
    columns = [column for row, _ in rows for column in row]
    counts = np.cumsum([0, *(len(row) for row, _ in rows)])
    return sparse.csr_array((values, columns, counts), shape=(len(rows), n))
