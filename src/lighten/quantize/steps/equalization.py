"""Cross-layer equalization: let the channels between two layers have weights of one size on either side.

Source: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", arXiv:1906.04721,
sec. 4.1: where relu stands between, channel i of the first layer may be divided by s_i and the second multiply by it;
with s_i = sqrt(r1_i / r2_i), r the largest weight, both ranges become sqrt(r1_i · r2_i).
Differs: relu6 is not replaced by relu, which would change the function. Of a channel that may reach its upper end the
factor stays 1, and any other may grow up to that end. How far a channel reaches is judged by calibration data: the
largest value, with headroom, or as many standard deviations above the mean, before clipping at either end; a channel
that is seldom on shows little of its range otherwise. Without calibration data, layers around relu6 stay as they are.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from lighten.errors import ConfigError
from lighten.graph.arguments import arguments
from lighten.graph.capture import CapturedModule, get_tensor
from lighten.quantize.placement import CONVOLUTIONS, WEIGHTED, upper_clip
from lighten.quantize.ranges import watch
from lighten.quantize.rescale import divide_output_, maker_of, multiply_input_, per_input

Pair = tuple[fx.Node, fx.Node]


@dataclass(frozen=True, kw_only=True)
class EqualizationConfig:
    """rounds: passes over all pairs at most; a layer in the middle belongs to two. tolerance: a pass that moves no
    factor further from 1 is the last. headroom, deviations: a channel is taken to reach so many times the
    largest value seen, and so many standard deviations above its mean."""

    rounds: int = 20
    tolerance: float = 1e-3
    headroom: float = 2.0
    deviations: float = 6.0

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.tolerance < 0:
            raise ConfigError(f"rounds={self.rounds} must be at least 1, and tolerance={self.tolerance} at least 0.")
        if self.headroom < 1:
            raise ConfigError(f"headroom={self.headroom} is below 1: values that were seen would be clipped.")
        if self.deviations < 0:
            raise ConfigError(f"deviations={self.deviations} is below 0. The default is 6; 0 counts the mean alone.")


def equalize_(captured: CapturedModule, config: EqualizationConfig, batches: Iterable[Any] = ()) -> list[Pair]:
    """Equalize every pair of captured, batch norm folded, in place; returns the pairs.

    batches: calibration data, for pairs with relu6 between; without any, these are left alone.
    """
    pairs = find_pairs(captured)
    least = reaches(captured, pairs, batches, config)
    pairs = [pair for pair in pairs if pair in least or _clip_between(pair) is None]
    fixed = {pair: factor >= 1 for pair, factor in least.items()}
    for _ in range(config.rounds):
        furthest = 0.0
        for pair in pairs:
            first, second = pair
            factors = equalizing_factors(_output_range(captured, first), _input_range(captured, second))
            if pair in least:
                factors = torch.where(fixed[pair], 1.0, factors.maximum(least[pair]))
                least[pair] = least[pair] / factors
            divide_output_(captured, first, factors)
            multiply_input_(captured, second, factors)
            furthest = max(furthest, float((factors - 1).abs().max()))
        if furthest <= config.tolerance:
            break
    return pairs


def reaches(
    captured: CapturedModule, pairs: Iterable[Pair], batches: Iterable[Any], config: EqualizationConfig
) -> dict[Pair, Tensor]:
    """[channels] for every pair with relu6 between: how far a channel reaches there, over relu6's upper end."""
    clips = {clip: pair for pair in pairs if (clip := _clip_between(pair)) is not None}
    seen: dict[fx.Node, _Seen] = {}

    def look(node: fx.Node, value: Tensor) -> None:
        for clip in (user for user in node.users if user in clips):
            axis = 1 if _is_conv(clips[clip][0]) else value.ndim - 1
            seen.setdefault(clip, _Seen()).add(value.movedim(axis, 0).flatten(1).double())

    if clips:
        watch(captured, [clip.all_input_nodes[0] for clip in clips], batches, look)
    found = {}
    for clip, values in seen.items():
        end = upper_clip(clip)
        assert end is not None
        found[clips[clip]] = values.reach(config).float() / end
    return found


class _Seen:
    """Of each channel the number of values, their sum, the sum of their squares, and the largest, at least 0."""

    def __init__(self) -> None:
        self.n, self.sum, self.squares, self.largest = 0, torch.zeros(()), torch.zeros(()), torch.zeros(())

    def add(self, values: Tensor) -> None:
        """values [channels, n] float64."""
        self.n += values.shape[1]
        self.sum, self.squares = self.sum + values.sum(1), self.squares + values.square().sum(1)
        self.largest = self.largest.maximum(values.amax(1))

    def reach(self, config: EqualizationConfig) -> Tensor:
        mean = self.sum / self.n
        deviation = (self.squares / self.n - mean.square()).clamp(min=0).sqrt()
        return (self.largest * config.headroom).maximum(mean + config.deviations * deviation)


def _clip_between(pair: Pair) -> fx.Node | None:
    node = arguments(pair[1])["input"]
    while node is not pair[0]:
        if upper_clip(node) is not None:
            return node  # type: ignore[no-any-return]
        node = node.all_input_nodes[0]
    return None


def find_pairs(captured: CapturedModule) -> list[Pair]:
    """Layers of which the second alone reads what the first makes, in the order of the graph."""
    pairs = []
    for second in captured.graph.nodes:
        if second.target not in WEIGHTED:
            continue
        given = arguments(second)
        weight, source = given["weight"], given["input"]
        if weight.op != "get_attr" or len(weight.users) != 1 or len(source.users) != 1:
            continue
        first = maker_of(captured, source, clipped=True)
        # What is channels to one must be channels to the other: a linear layer's are last, a convolution's are not.
        if first is not None and first.target in WEIGHTED and _is_conv(first) == _is_conv(second):
            pairs.append((first, second))
    return pairs


def equalizing_factors(output_range: Tensor, input_range: Tensor) -> Tensor:
    """sqrt(r1 / r2) for each channel; 1 where either is zero, and nothing could be equal."""
    usable = (output_range > 0) & (input_range > 0)
    factors = (output_range.double() / torch.where(usable, input_range, 1.0).double()).sqrt().float()
    return torch.where(usable & factors.isfinite() & (factors > 0), factors, 1.0)


def _output_range(captured: CapturedModule, node: fx.Node) -> Tensor:
    return get_tensor(captured, str(arguments(node)["weight"].target)).detach().flatten(1).abs().amax(1)


def _input_range(captured: CapturedModule, node: fx.Node) -> Tensor:
    weight = get_tensor(captured, str(arguments(node)["weight"].target)).detach()
    return per_input(node, weight).abs().amax((1, 3)).flatten()


def _is_conv(node: fx.Node) -> bool:
    return node.target in CONVOLUTIONS
