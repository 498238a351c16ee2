"""Space: the choices of a family of candidates, with harm and cost of every option; a point of it is a variant.

Families: "channels" (dense networks on whatever runtime is fastest), "zeros" (blocks of zeros on the native engine),
"both" (fewer channels, and zeros in what is left).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

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
from lighten.search.cost import exact, layer_shapes, layer_times
from lighten.search.realize import N_SAMPLES, Variant
from lighten.search.sanity import gives_logits
from lighten.search.sensitivity import Harms, kept_on_disk, lasting, measure_harms
from lighten.search.workers import Tell, Workers
from lighten.task import Task, batches

MEASURING = "measuring what each layer can spare"
FAMILIES = ("channels", "zeros", "both")


@dataclass(frozen=True, kw_only=True)
class Network:
    """What all families of one task share. layers: that may have zeros are those in choices.

    shapes: of all layers.
    """

    layers: tuple[WeightLayer, ...]
    shapes: tuple[tuple[Layer, ...], ...]
    around: tuple[tuple[str | None, str | None], ...]
    choices: tuple[Choice, ...]
    harms: Harms
    macs: int


@dataclass(frozen=True, kw_only=True)
class Space:
    """family's choices; harms: of each, [options], see `lasting`, in units of the whole budget where that is known.

    terms: of the cost, which is whole for the network as it is.
    """

    family: str
    network: Network
    choices: tuple[Choice, ...]
    harms: tuple[NDArray[np.float64], ...]
    terms: tuple[Term, ...]
    whole: float

    def point(self, cost: float) -> Allocation:
        """The options of least harm that cost so much at most.

        Raises:
            ConfigError: nothing does; the message says what is possible.
        """
        return allocate(self.harms, self.terms, cost)

    @property
    def least(self) -> float:
        """What the cheapest options cost."""
        return cheapest(self.harms, self.terms).cost

    def at(self, picked: Sequence[int]) -> Allocation:
        """The point with these options."""
        harm = sum(float(harms[i]) for harms, i in zip(self.harms, picked, strict=True))
        return Allocation(tuple(picked), harm, total_cost(self.terms, picked))

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
    """Milliseconds on a runtime that computes zeros like any numbers, of which the network as it is takes whole_ms.

    Layers are timed alone, at every option, where workers' target is.

    Raises:
        ArtifactError, CaptureError: the runtime cannot run one.
    """
    choices = choices_of(network, family)
    axes = axes_of(network, choices)
    wanted = [
        each
        for shapes, (_, shares) in zip(network.shapes, axes, strict=True)
        for shape in dict.fromkeys(shapes)
        for each in exact(shape, shares[0], shares[1])
    ]
    times = workers.at_target(layer_times, runtime, threads, wanted, tell=tell)
    terms = _terms_at_every_option(network, axes, times.ms)
    dense_ms = total_cost(terms, [0] * len(choices))
    if dense_ms > whole_ms:
        return [Term(term.choices, term.cost * whole_ms / dense_ms) for term in terms]
    return [*terms, Term((), np.array(whole_ms - dense_ms))]


def device_terms(network: Network, family: str, device: DeviceProfile, dtype: str) -> list[Term]:
    """Milliseconds on a device that is described, computing in dtype.

    Raises:
        ConfigError: it does not.
    """

    def predicted(layer: Layer) -> float:
        return 1e3 * predict_seconds(replace(layer, dtype=dtype), device)

    return _terms_at_every_option(network, axes_of(network, choices_of(network, family)), predicted)


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
    axes = axes_of(network, choices_of(network, family))
    for shapes, (on, shares), cost in zip(network.shapes, axes, of_layers, strict=True):
        inputs, outputs, densities = map(np.array, shares)
        if shapes[0].is_depthwise:  # its inputs are its outputs, and count once
            inputs = np.ones_like(inputs)
        terms.append(term_of(on, inputs[:, None, None] * outputs[:, None] * densities * cost))
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


def axes_of(network: Network, choices: Sequence[Choice]) -> list[tuple[On, Shares]]:
    """For each layer the choices that its cost depends on, and what their options leave of inputs, outputs, weights."""
    index = {choice.key: i for i, choice in enumerate(choices)}
    found = []
    for layer, (read, made) in zip(network.layers, network.around, strict=True):
        on = (index.get(f"channels:{read}"), index.get(f"channels:{made}"), index.get(f"zeros:{layer.name}"))
        inputs, outputs, weights = ((1.0,) if i is None else tuple(1 - s for s in choices[i].options) for i in on)
        found.append((on, (inputs, outputs, weights)))
    return found


def _terms_at_every_option(
    network: Network, axes: Sequence[tuple[On, Shares]], ms: Callable[[Layer], float]
) -> list[Term]:
    """What each layer takes by ms, wherever it stands, on a runtime that computes zeros like any numbers."""
    terms = []
    for shapes, (on, (inputs, outputs, densities)) in zip(network.shapes, axes, strict=True):
        table = np.zeros([len(inputs), len(outputs), len(densities)])
        for shape in shapes:
            found = [ms(layer) for layer in exact(shape, inputs, outputs)]
            table += np.array(found).reshape(len(inputs), len(outputs), 1)
        terms.append(term_of(on, table))
    return terms


def term_of(on: On, table: NDArray[np.float64]) -> Term:
    """table: [inputs, outputs, densities]; an axis that no choice decides has one entry."""
    if on[0] is not None and on[0] == on[1]:  # the same channels on both sides
        return term_of((None, on[1], on[2]), np.einsum("iid->id", table)[None])
    fixed = tuple(axis for axis, i in enumerate(on) if i is None)
    return Term(tuple(i for i in on if i is not None), table.squeeze(fixed))
