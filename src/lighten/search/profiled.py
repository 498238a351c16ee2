"""Profiled: what layers cost on the native engine, from whole networks that each lack something else.

The engine tells what it spends on each layer of a network (lighten.runtime.native.profiler). A few networks, in which
every choice has an option drawn by chance, are enough to know what any options cost. A layer's time is

    c₀ + c₁ · outputs + c₂ · inputs + c₃ · inputs · outputs · density

of the shares that are left: being called and waited for, storing, reading (a stride lays its input anew), multiplying.
No c is negative (Lawson & Hanson, "Solving Least Squares Problems", 1974, ch. 23). Of networks that were not among them
the sum foretells the time within 7 % (root mean square; ResNet-20, 10 networks), where layers timed alone, each in a
network of its own, were up to 3 times off.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from lighten.graph.capture import capture
from lighten.search.allocate import Term, total_cost
from lighten.search.config import SearchConfig
from lighten.search.realize import lower_untrained, representative_inputs
from lighten.search.space import Network, axes_of, choices_of, space, term_of
from lighten.search.workers import Tell, Workers

N_NETWORKS = 10  # making one takes some seconds; 20 foretell no better
LEAST = 0.03  # of a network's time: what layers take is known to a share of it, and of the whole where that is more


@dataclass(frozen=True)
class Profiled:
    """A network that was timed. picked: of all choices. layers: milliseconds by name, whole: of a call."""

    picked: tuple[int, ...]
    whole: float
    layers: Mapping[str, float]


def designs(n_options: Sequence[int], n: int = N_NETWORKS) -> list[tuple[int, ...]]:
    """Options to make networks of: the first of all, the last of all, those between, and others drawn by chance."""
    draws = np.random.default_rng(0)
    found = [tuple(0 for _ in n_options), tuple(n - 1 for n in n_options), tuple(n // 2 for n in n_options)]
    found += [tuple(int(draws.integers(n)) for n in n_options) for _ in range(n - len(found))]
    return list(dict.fromkeys(found))


def profile_networks(network: Network, config: SearchConfig, tell: Tell, workers: Workers) -> list[Profiled]:
    """Networks with other options of all choices, untrained, timed where workers' target is.

    Raises:
        LightenError: one cannot be pruned or lowered.
    """
    task, found = workers.task, designs([len(choice.options) for choice in network.choices])
    kinds = {choice.kind for choice in network.choices}
    made = space(network, "both" if len(kinds) > 1 else min(kinds, default="zeros"), (), 0.0)
    inputs = representative_inputs(task, capture(task.model, task.example_inputs), config.batch)
    with tempfile.TemporaryDirectory(prefix="lighten-") as scratch:
        paths = {}
        for i, picked in enumerate(found):
            tell(i / len(found), f"making {len(found)} networks to time")
            how = {"schemes": config.sparse_schemes[:1], "runtimes": ("native",)}
            variant = made.variant(made.at(picked), in_ms=False, **how)
            paths[str(i)] = lower_untrained(task, variant, config, Path(scratch) / str(i))
        times = workers.profile(paths, inputs, threads=config.threads)
    return [Profiled(picked, times[key].whole, times[key].layers) for key, picked in zip(paths, found, strict=True)]


def profiled_terms(network: Network, family: str, profiled: Sequence[Profiled], whole: float) -> list[Term]:
    """Costs of the family's options, so that the network as it is costs whole.

    What no layer accounts for is taken to stay.
    """
    choices, times = choices_of(network, family), np.array([each.whole for each in profiled])
    left = [_left(network, each.picked) for each in profiled]
    rest, terms = times.copy(), []
    for i, (layer, (on, shares)) in enumerate(zip(network.layers, axes_of(network, choices), strict=True)):
        took = np.array([each.layers.get(layer.name, 0.0) for each in profiled])
        rest -= took
        weight = 1 / np.maximum(took, LEAST * times)
        seen = np.array([_features(*map(np.array, shares_of[i])) for shares_of in left])
        costs, _ = nnls(seen * weight[:, None], took * weight)
        inputs, outputs, densities = np.meshgrid(*shares, indexing="ij")
        terms.append(term_of(on, np.moveaxis(_features(inputs, outputs, densities), 0, -1) @ costs))
    terms.append(Term((), np.array(max(0.0, float(np.median(rest))))))
    scale = whole / total_cost(terms, [0] * len(choices))
    return [Term(term.choices, term.cost * scale) for term in terms]


def _features(
    inputs: NDArray[np.float64], outputs: NDArray[np.float64], density: NDArray[np.float64]
) -> NDArray[np.float64]:
    """[4, …] of shares that are left."""
    return np.stack([np.ones_like(inputs), outputs, inputs, inputs * outputs * density])


def _left(network: Network, picked: Sequence[int]) -> list[tuple[float, float, float]]:
    """Of each layer: the shares of its inputs, outputs and weights that are left."""
    found = []
    for on, shares in axes_of(network, network.choices):
        inputs, outputs, density = (1.0 if i is None else axis[picked[i]] for i, axis in zip(on, shares, strict=True))
        found.append((inputs, outputs, density))
    return found
