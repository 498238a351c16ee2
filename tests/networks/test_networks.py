"""Every network of every family: removing units computes what zeroing them computes, and what is left trains."""

import copy
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

from lighten.export.onnx import to_onnx
from lighten.graph.capture import CapturedModule, capture
from lighten.graph.count import count_parameters
from lighten.graph.groups import Group, find_groups
from lighten.graph.labels import Labels, propagate
from lighten.graph.rewrite import remove_units_, zero_units_
from lighten.prune import prune
from tests.networks import NETWORKS, build

WITH_HEADS = ["vit", "swin", "bert", "gpt2", "llama", "encoder-decoder", "conformer", "products", "cosine-attention"]


@dataclass(frozen=True)
class Found:
    captured: CapturedModule
    inputs: tuple[Any, ...]
    labels: Labels
    groups: list[Group]


@cache
def captured(name: str) -> tuple[CapturedModule, tuple[Any, ...]]:
    model, inputs = build(name)
    return capture(model, inputs), inputs


@cache
def found(name: str, keep: str = "channel") -> Found:
    module, inputs = captured(name)
    labels = propagate(module, inputs, keep)
    groups = find_groups(labels)
    if keep != "channel":
        groups = [group for group in groups if torch.isin(group.units, labels.found).all()]
    return Found(module, inputs, labels, groups)


def twice(module: CapturedModule, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return pytree.tree_map(lambda x: torch.cat([x, x.flip(-1)]), inputs) if module.batch_is_dynamic else inputs


def assert_removing_equals_zeroing(case: Found, seed: int) -> None:
    make = torch.Generator().manual_seed(seed)
    gone = [g.units[torch.randperm(len(g.units), generator=make)[: len(g.units) // 2]] for g in case.groups]
    zeroed, removed = copy.deepcopy(case.captured), copy.deepcopy(case.captured)
    zero_units_(zeroed, case.labels, torch.cat(gone))
    remove_units_(removed, case.labels, torch.cat(gone), case.inputs)
    more = twice(case.captured, case.inputs)
    # float64 sums in another order: 1e-8 relative is the goal, 1e-10 is reached.
    torch.testing.assert_close(removed(*more), zeroed(*more), rtol=1e-10, atol=1e-10)
    assert count_parameters(removed) < count_parameters(case.captured)
    changed = [
        (a - b).abs().max()
        for a, b in zip(pytree.tree_leaves(zeroed(*more)), pytree.tree_leaves(case.captured(*more)), strict=True)
    ]
    assert max(changed) > 1e-6  # or the oracle would hold trivially


@pytest.mark.parametrize("name", NETWORKS)
def test_removing_equals_zeroing(name: str) -> None:
    for seed in range(2):
        assert_removing_equals_zeroing(found(name), seed)


@pytest.mark.parametrize("keep", ["head", "head_dim"])
@pytest.mark.parametrize("name", WITH_HEADS)
def test_removing_heads_equals_zeroing_them(name: str, keep: str) -> None:
    assert_removing_equals_zeroing(found(name, keep), 0)


@pytest.mark.parametrize(
    ("name", "keep", "sizes"),
    [
        ("vit", "channel", [6, 96, 6, 96]),  # head_dim of q, k and v together, for they are one reshape
        ("vit", "head", [4, 4]),
        ("gpt2", "channel", [8, 8, 96, 8, 8, 96]),  # q with k, then v, then the feed-forward
        ("gpt2", "head", [3, 3]),
        ("llama", "channel", [4, 8, 40, 8, 40]),  # rotary halves go together, in both layers, for cos is one buffer
        ("llama", "head", [2, 2]),  # a key and value head goes with its two query heads
        ("llama-integer", "channel", [8, 40, 8, 40]),  # cos from integers: q and k keep their dimensions
        ("llama-integer", "head", [2, 2]),
        ("bert", "head", [4, 4]),
        ("encoder-decoder", "head", [4, 4, 4]),  # two self attentions and the cross attention
        ("group-norm", "channel", [4] * 11),  # whole groups
        ("resnext", "channel", [16, 2, 2, 32, 2, 2, 4, 4, 64, 4, 4]),  # the same places of every group
        ("lstm-tagger", "channel", [12, 10, 16]),  # both layers and directions hold one tensor of states
        ("linear-attention", "channel", [2]),  # elu(0) + 1 is not 0: dimensions stay, heads go
    ],
)
def test_every_group_that_can_go_is_found(name: str, keep: str, sizes: list[int]) -> None:
    groups = found(name, keep).groups
    assert [len(group.units) for group in groups] == sizes, [group.producers for group in groups]


@pytest.mark.parametrize(
    ("name", "layer", "reason"),
    [
        ("bert", "words", "layer norm takes its statistics over its channels"),
        ("convnext", "stem.0", "layer norm takes its statistics over its channels"),
        ("llama", "embed", "aten.mean.dim takes its channels together"),
        ("llama-integer", "layers.0.q_proj", "meets a constant of fixed size"),
        ("seed", "fc", "an output of the model"),
    ],
)
def test_what_stays_is_reported_with_its_reason(name: str, layer: str, reason: str) -> None:
    assert reason in found(name).labels.frozen[layer]


@pytest.mark.parametrize("name", NETWORKS)
def test_the_verb_halves_every_layer_and_what_is_left_trains(name: str) -> None:
    module, inputs = captured(name)
    pruned = prune(module, 0.5, scope="layer", example_inputs=inputs)
    assert count_parameters(pruned) < 0.8 * count_parameters(module)
    pruned.train()
    outputs = pytree.tree_leaves(pruned(*twice(pruned, inputs)))
    sum(out.square().sum() for out in outputs).backward()
    read = {node.target for node in pruned.graph.nodes if node.op == "get_attr"}  # WaveNet's last residual is not
    assert all(p.grad is not None for key, p in pruned.named_parameters() if key in read)


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_left_exports_and_runs_in_onnxruntime(name: str) -> None:
    ort = pytest.importorskip("onnxruntime")
    model, inputs = build(name)
    inputs = pytree.tree_map(_single, inputs)
    pruned = prune(model.float(), 0.5, scope="layer", example_inputs=inputs)
    session = ort.InferenceSession(to_onnx(pruned, inputs).SerializeToString(), providers=["CPUExecutionProvider"])
    feed = {i.name: x.numpy() for i, x in zip(session.get_inputs(), inputs, strict=True)}
    with torch.no_grad():
        want = pytree.tree_leaves(pruned(*inputs))
    for out, expected in zip(session.run(None, feed), want, strict=True):
        torch.testing.assert_close(torch.from_numpy(out), expected, rtol=1e-3, atol=1e-4)


def _single(x: torch.Tensor) -> torch.Tensor:
    return x.float() if x.is_floating_point() else x
