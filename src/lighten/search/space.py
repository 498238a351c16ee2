"""Space: the choices of a family of candidates, with harm and cost of every option; a point of it is a variant.

Families: "channels" (dense networks on whatever runtime is fastest), "zeros" (blocks of zeros on the native engine),
"both" (fewer channels, and zeros in what is left).
"""

import contextlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lighten.errors import CaptureError, ConfigError
from lighten.export.native import shares_made
from lighten.graph.capture import CapturedModule, capture
from lighten.graph.groups import Group, find_groups
from lighten.graph.labels import Labels, propagate
from lighten.prune.calibration import input_statistics
from lighten.prune.layers import WeightLayer, find_layers, is_depthwise
from lighten.prune.patterns import parse_pattern
from lighten.prune.refit import fitted_without
from lighten.runtime.device import DeviceProfile
from lighten.runtime.roofline import Layer, predict_seconds
from lighten.search.allocate import Allocation, Term, allocate, cheapest, total_cost
from lighten.search.choices import (
    ChannelChoice,
    Choice,
    channel_choices,
    input_choice,
    output_choice,
    ranking,
    zero_choices,
    zeroed_blocks,
)
from lighten.search.config import BLOCK, SearchConfig
from lighten.search.cost import Timed, exact, grid, interpolated, layer_shapes, layer_times
from lighten.search.realize import N_SAMPLES, Variant, lower_untrained, representative_inputs
from lighten.search.sanity import gives_logits
from lighten.search.sensitivity import Harms, kept_on_disk, lasting, measure_harms
from lighten.search.workers import Tell, Workers
from lighten.task import Task, batches

ONE = Layer(in_channels=1, out_channels=1)  # what a call costs in any case
N_LOOKS = 7  # networks timed as wholes; every one takes some seconds to make
LEAST_SHARE = 0.1  # of what a layer takes alone that is its own, not the call's
MEASURING = "measuring what each layer can spare"
FAMILIES = ("channels", "zeros", "both")


@dataclass(frozen=True, kw_only=True)
class Network:
    """What all families of one task share. layers: that may have zeros are those in choices.

    shapes: of all layers. native: as the native engine computes them, which leaves out places that nobody reads.
    """

    layers: tuple[WeightLayer, ...]
    shapes: tuple[tuple[Layer, ...], ...]
    native: tuple[tuple[Layer, ...], ...]
    around: tuple[tuple[str | None, str | None], ...]
    choices: tuple[Choice, ...]
    harms: Harms
    macs: int


@dataclass(frozen=True, kw_only=True)
class Space:
    """family's choices; harms: of each, [options], see `lasting`, in units of the whole budget where that is known.

    terms: of the cost, which is whole for the network as it is. seen: of some points, what their terms sum up to and
    what they do cost, ascending in both; costs lie on the lines between. Without any, a cost is the sum of its terms.
    """

    family: str
    network: Network
    choices: tuple[Choice, ...]
    harms: tuple[NDArray[np.float64], ...]
    terms: tuple[Term, ...]
    whole: float
    seen: tuple[tuple[float, float], ...] = ()

    def point(self, cost: float) -> Allocation:
        """The options of least harm that cost so much at most.

        Raises:
            ConfigError: nothing does; the message says what is possible.
        """
        if not self.seen:
            return allocate(self.harms, self.terms, cost)
        if cost < self.least:
            raise ConfigError(f"A cost of {cost:.4g} cannot be met: the cheapest options cost {self.least:.4g}.")
        sums, costs = np.array(self.seen).T
        return self.at(allocate(self.harms, self.terms, float(np.interp(cost, costs, sums))).picked)

    @property
    def least(self) -> float:
        """What the cheapest options cost."""
        return self.seen[0][1] if self.seen else cheapest(self.harms, self.terms).cost

    def at(self, picked: Sequence[int]) -> Allocation:
        """The point with these options."""
        harm = sum(float(harms[i]) for harms, i in zip(self.harms, picked, strict=True))
        cost = total_cost(self.terms, picked)
        if self.seen:
            cost = float(np.interp(cost, *np.array(self.seen).T))
        return Allocation(tuple(picked), harm, cost)

    def variant(self, point: Allocation, *, in_ms: bool, **how: Any) -> Variant:
        """What to train for a point. in_ms: whether costs are milliseconds."""
        picked = list(zip(self.choices, point.picked, strict=True))

        def shares(kind: str) -> dict[str, float]:
            return {c.name: c.options[i] for c, i in picked if c.kind == kind and c.options[i]}

        left = self._macs_left(point) / max(self.network.macs, 1)
        what = {"channels": "channels", "zeros": "zeros", "both": "channels and zeros"}[self.family]
        return Variant(
            name=f"{what}: {left:.1%} of MACs",
            channels=shares("channels"),
            zeros=shares("zeros"),
            predicted_ms=point.cost if in_ms else None,
            **how,
        )

    def in_units_of(self, scale: Mapping[str, float]) -> "Space":
        """The same with harms of each kind divided by scale[kind]."""
        pairs = zip(self.choices, self.harms, strict=True)
        return replace(self, harms=tuple(harms / scale.get(choice.kind, 1.0) for choice, harms in pairs))

    def _macs_left(self, point: Allocation) -> float:
        share = {c.key: 1 - c.options[i] for c, i in zip(self.choices, point.picked, strict=True)}
        total = 0.0
        for layer, shapes, (read, made) in zip(
            self.network.layers, self.network.shapes, self.network.around, strict=True
        ):
            kept = share.get(f"zeros:{layer.name}", 1.0) * share.get(f"channels:{made}", 1.0)
            # Of a depthwise layer the inputs are the outputs, and count once.
            kept *= share.get(f"channels:{read}", 1.0) if not shapes[0].is_depthwise else 1.0
            total += kept * sum(shape.macs for shape in shapes)
        return total


def look_at(
    workers: Workers, config: SearchConfig, tell: Tell, kinds: Sequence[str] = ("channels", "zeros")
) -> Network:
    """The network's choices, and the harm of every option alone, which workers share out among them.

    Raises:
        CaptureError: it cannot be traced. TaskError: the calibration data does not fit it.
    """
    task = workers.task
    seen = _seen(task, config, kinds)
    shapes = layer_shapes(seen.captured, seen.layers, task.example_inputs, config.batch)
    return Network(
        layers=seen.layers,
        shapes=tuple(tuple(of_layer) for of_layer in shapes),
        native=_natively(seen, task.example_inputs, shapes),
        around=tuple(_around(seen.labels, layer, seen.groups) for layer in seen.layers),
        choices=seen.choices,
        harms=_harms(workers, config, kinds, seen, tell),
        macs=sum(shape.macs for of_layer in shapes for shape in of_layer),
    )


def space(network: Network, family: str, terms: Sequence[Term], whole: float) -> Space:
    """family's space. terms: of its cost, which is whole for the network as it is."""
    choices = choices_of(network, family)
    return Space(
        family=family,
        network=network,
        choices=choices,
        harms=tuple(lasting(network.harms[choice.key], choice.options) for choice in choices),
        terms=tuple(terms),
        whole=whole,
    )


def choices_of(network: Network, family: str) -> tuple[Choice, ...]:
    """Those that the family may take."""
    kinds = ("channels", "zeros") if family == "both" else (family,)
    return tuple(choice for choice in network.choices if choice.kind in kinds)


def time_terms(
    network: Network, family: str, runtime: str, whole_ms: float, threads: int, tell: Tell, workers: Workers
) -> list[Term]:
    """Milliseconds on that runtime, where the network as it is takes whole_ms; timed where workers' target is.

    Raises:
        ArtifactError, CaptureError: the runtime cannot run a layer alone.
    """
    choices = choices_of(network, family)
    axes = _axes(network, choices)
    wanted = [Timed(ONE)]
    of_layers = network.native if runtime == "native" else network.shapes
    for shapes, (_, shares) in zip(of_layers, axes, strict=True):
        for shape in dict.fromkeys(shapes):
            wanted += grid(shape, *shares) if runtime == "native" else exact(shape, shares[0], shares[1])
    times = workers.at_target(layer_times, runtime, threads, wanted, tell=tell)
    # The native engine runs all layers in one call. What calls a kernel a node spends that in a network as well: with
    # it, ResNet-20's 0.27, 0.21 and 0.18 ms at fewer channels were foretold as 0.25, 0.19, 0.16, else 0.23, 0.16, 0.12.
    call_ms = times.ms(Timed(ONE)) if runtime == "native" else 0.0
    terms = []
    for shapes, (on, shares) in zip(of_layers, axes, strict=True):
        table = np.zeros([len(axis) for axis in shares])
        for shape in shapes:
            if runtime == "native":
                alone = interpolated(times, shape, *shares)
            else:
                alone = _at_every_option(shape, shares, times.ms)
            table += np.maximum(alone - call_ms, LEAST_SHARE * alone)
        terms.append(_term(on, table))
    dense_ms = total_cost(terms, [0] * len(choices))
    if dense_ms > whole_ms:
        return [Term(term.choices, term.cost * whole_ms / dense_ms) for term in terms]
    return [*terms, Term((), np.array(whole_ms - dense_ms))]


def looks(made: Space) -> list[Allocation]:
    """Points to time as whole networks, from the cheapest to the network as it is; their costs grow by one ratio."""
    dense, least = made.at([0] * len(made.choices)), cheapest(made.harms, made.terms)
    if not least.cost < dense.cost:
        return [dense]
    targets = np.geomspace(dense.cost, least.cost, N_LOOKS)[1:-1]
    found = {point.picked: point for point in (least, *map(made.point, targets), dense)}
    return sorted(found.values(), key=lambda point: point.cost)


def network_times(
    made: Space, points: Sequence[Allocation], config: SearchConfig, tell: Tell, workers: Workers
) -> list[float]:
    """Milliseconds of each point's network on the native engine where workers' target is, untrained, as wholes.

    They are timed side by side: what they take of each other holds longer than what they take.

    Raises:
        LightenError: one cannot be pruned or lowered.
    """
    task = workers.task
    inputs = representative_inputs(task, capture(task.model, task.example_inputs), config.batch)
    with tempfile.TemporaryDirectory(prefix="lighten-") as scratch:
        paths = {}
        for i, point in enumerate(points):
            tell(i / len(points), f"timing {len(points)} networks as wholes")
            variant = made.variant(point, in_ms=True, schemes=config.sparse_schemes[:1], runtimes=("native",))
            paths[str(i)] = lower_untrained(task, variant, config, Path(scratch) / str(i))
        samples = workers.latency(paths, inputs, threads=config.threads, processes=2)
    return [samples[key].median for key in paths]


def corrected(made: Space, points: Sequence[Allocation], times: Sequence[float]) -> Space:
    """made with the costs of points as they were timed; the last is the network as it is, whose cost is known.

    Layers timed alone foretell which options are cheap, but not what a network of them takes. A point that took no less
    than a costlier one is left out: nothing is gained by it.
    """
    seen: list[tuple[float, float]] = []
    for point, ms in sorted(zip(points, times, strict=True), key=lambda pair: -pair[0].cost):
        cost = made.whole * ms / times[-1]
        if not seen or (cost < seen[-1][1] and point.cost < seen[-1][0]):
            seen.append((point.cost, cost))
    return replace(made, seen=tuple(reversed(seen)))


def device_terms(network: Network, family: str, device: DeviceProfile, dtype: str) -> list[Term]:
    """Milliseconds on a device that is described, computing in dtype.

    Raises:
        ConfigError: it does not.
    """

    def predicted(timed: Timed) -> float:
        return 1e3 * predict_seconds(replace(timed.layer, dtype=dtype), device)

    terms = []
    for shapes, (on, shares) in zip(network.shapes, _axes(network, choices_of(network, family)), strict=True):
        table = np.zeros([len(axis) for axis in shares])
        for shape in shapes:
            table += _at_every_option(shape, shares, predicted)
        terms.append(_term(on, table))
    return terms


def weight_terms(network: Network, family: str, whole: float) -> list[Term]:
    """Bytes, as if each weight that is left took its share of whole."""
    total = sum(shapes[0].n_weights for shapes in network.shapes)
    return _terms_of_what_is_left(network, family, [shapes[0].n_weights / total * whole for shapes in network.shapes])


def mac_terms(network: Network, family: str) -> list[Term]:
    """Multiplications."""
    return _terms_of_what_is_left(network, family, [float(sum(s.macs for s in shapes)) for shapes in network.shapes])


def _terms_of_what_is_left(network: Network, family: str, of_layers: Sequence[float]) -> list[Term]:
    """What a layer costs times the share of its weights that is left."""
    terms = []
    axes = _axes(network, choices_of(network, family))
    for shapes, (on, shares), cost in zip(network.shapes, axes, of_layers, strict=True):
        inputs, outputs, densities = map(np.array, shares)
        if shapes[0].is_depthwise:  # its inputs are its outputs, and count once
            inputs = np.ones_like(inputs)
        terms.append(_term(on, inputs[:, None, None] * outputs[:, None] * densities * cost))
    return terms


@dataclass(frozen=True)
class _Seen:
    """What tracing the network shows."""

    captured: CapturedModule
    labels: Labels
    groups: list[Group]
    layers: tuple[WeightLayer, ...]
    choices: tuple[Choice, ...]
    importance: str


def _seen(task: Task, config: SearchConfig, kinds: Sequence[str]) -> _Seen:
    captured = capture(task.model, task.example_inputs).eval()
    labels = propagate(captured, task.example_inputs)
    groups = find_groups(labels)
    layers, _ = find_layers(captured)
    pattern = parse_pattern(BLOCK)
    fit = [
        layer
        for layer in layers
        if not pattern.misfit(captured.get_parameter(layer.parameter).shape) and not is_depthwise(captured, layer)
    ]  # the native engine computes depthwise layers with their zeros
    by = ranking(captured, labels, groups, config.importance).importance
    how = (config.round_to, by, _samples(task))
    channels = channel_choices(captured, labels, groups, config.channel_shares, *how)
    choices: list[Choice] = [c for c in channels if len(c.options) > 1 and "channels" in kinds]
    choices += zero_choices(fit, config.zero_shares) if "zeros" in kinds else []
    return _Seen(captured, labels, groups, tuple(layers), tuple(choices), by)


def _natively(
    seen: _Seen, example_inputs: tuple[Any, ...], shapes: Sequence[Sequence[Layer]]
) -> tuple[tuple[Layer, ...], ...]:
    """shapes with as many rows of a linear layer as the native engine makes; as they are where it lacks an operator."""
    made: Mapping[str, float] = {}
    with contextlib.suppress(CaptureError):
        made = shares_made(seen.captured, example_inputs)
    rows = [made.get(layer.parameter, 1.0) for layer in seen.layers]
    return tuple(
        tuple(replace(s, batch=max(1, round(s.batch * share))) if s.size == (1, 1) else s for s in of_layer)
        for of_layer, share in zip(shapes, rows, strict=True)
    )


def _harms(workers: Workers, config: SearchConfig, kinds: Sequence[str], seen: _Seen, tell: Tell) -> Harms:
    task = workers.task

    def measured() -> Harms:
        if workers.n == 1:
            return _measured(task, seen, seen.choices, tell)
        n = min(workers.n, len(seen.choices))
        jobs = [(harms_of_some, config, kinds, i, n) for i in range(n)]
        found: Harms = {}
        for share in workers.all_done(jobs, MEASURING, tell):
            found |= share
        return {choice.key: found[choice.key] for choice in seen.choices}

    options = {c.key: c.options for c in seen.choices}
    about = {"options": options, "importance": seen.importance, "are_logits": gives_logits(task)}
    tensors = [*seen.captured.state_dict().values(), *torch.utils._pytree.tree_leaves(_samples(task))]
    return kept_on_disk(about, tensors, measured)


def harms_of_some(task: Task, config: SearchConfig, kinds: Sequence[str], first: int, n: int, *, tell: Tell) -> Harms:
    """A job: the harms of every n-th choice from the first on."""
    seen = _seen(task, config, kinds)
    return _measured(task, seen, seen.choices[first::n], tell)


def _measured(task: Task, seen: _Seen, choices: Sequence[Choice], tell: Tell) -> Harms:
    captured, layers, samples = seen.captured, {layer.name: layer for layer in seen.layers}, _samples(task)
    # obs chooses what the others can make up for, so its harm is that which is left then; of l2 both are alike.
    is_fitted = seen.importance == "obs" and any(isinstance(choice, ChannelChoice) for choice in choices)
    read = input_statistics(captured, list(seen.layers), samples, full=True) if is_fitted else {}

    def change(choice: Choice, i: int) -> dict[str, torch.Tensor]:
        if not choice.options[i]:
            return {}
        if isinstance(choice, ChannelChoice):
            fitted = seen.layers if is_fitted else ()
            return fitted_without(captured, seen.labels, choice.gone[i], fitted, read)
        return zeroed_blocks(captured, layers[choice.name], choice.options[i], BLOCK)

    options = {c.key: [(lambda c=c, i=i: change(c, i)) for i in range(len(c.options))] for c in choices}
    return measure_harms(
        captured,
        options,
        samples,
        are_logits=gives_logits(task),
        on_progress=lambda share: tell(share, MEASURING),
    )


def _samples(task: Task) -> list[Any]:
    """Batches of calibration data that make up N_SAMPLES, or all there are."""
    given, n = [], 0
    for batch in batches(task.calibration, task.batch_size):
        if n >= N_SAMPLES:
            break
        given.append(batch)
        n += len(torch.utils._pytree.tree_leaves(batch)[0])
    return given


def _around(labels: Labels, layer: WeightLayer, groups: Sequence[Group]) -> tuple[str | None, str | None]:
    return input_choice(labels, layer.parameter, groups), output_choice(labels, layer.parameter, groups)


On = tuple[int | None, int | None, int | None]
Shares = tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]


def _axes(network: Network, choices: Sequence[Choice]) -> list[tuple[On, Shares]]:
    """For each layer the choices that its cost depends on, and what their options leave of inputs, outputs, weights."""
    index = {choice.key: i for i, choice in enumerate(choices)}
    found = []
    for layer, (read, made) in zip(network.layers, network.around, strict=True):
        on = (index.get(f"channels:{read}"), index.get(f"channels:{made}"), index.get(f"zeros:{layer.name}"))
        inputs, outputs, weights = ((1.0,) if i is None else tuple(1 - s for s in choices[i].options) for i in on)
        found.append((on, (inputs, outputs, weights)))
    return found


def _at_every_option(shape: Layer, shares: Shares, ms: Callable[[Timed], float]) -> NDArray[np.float64]:
    """[inputs, outputs, 1] milliseconds, of a runtime that computes zeros like any numbers."""
    inputs, outputs, _ = shares
    found = [ms(timed) for timed in exact(shape, inputs, outputs)]
    return np.array(found).reshape(len(inputs), len(outputs), 1)


def _term(on: On, table: NDArray[np.float64]) -> Term:
    """table: [inputs, outputs, densities]; an axis that no choice decides has one entry."""
    if on[0] is not None and on[0] == on[1]:  # the same channels on both sides
        return _term((None, on[1], on[2]), np.einsum("iid->id", table)[None])
    fixed = tuple(axis for axis, i in enumerate(on) if i is None)
    return Term(tuple(i for i in on if i is not None), table.squeeze(fixed))
