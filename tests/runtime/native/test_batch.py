"""Samples side by side: the same numbers as one by one, up to rounding, and only where no sample meets another."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

pytest.importorskip("llvmlite")

import lighten
from lighten.runtime.native.batch import Batched, engine_for, side_by_side
from lighten.runtime.native.packed import Packed, pack
from lighten.runtime.native.program import (
    Cat,
    Constant,
    Conv,
    Elements,
    Gather,
    Norm,
    Op,
    Program,
    Reduce,
    Reshape,
    Softmax,
)
from lighten.runtime.native.program import Tensor as Sizes
from lighten.runtime.native.stored import Stored, to_arrays
from tests.runtime.native.guarded import close, damage_and_run, guarded_batch, guarded_run, random


def plan(block: int = 1) -> tuple[Program, Stored]:
    """Every operation that goes by places: a flattened picture, a residual, norm, gate, softmax, two outputs."""
    ops = (
        Reshape(inputs=(0,), rows=12),
        Conv(inputs=(1,), weight="a", rows=10, block=block, act="relu"),
        Conv(inputs=(2,), weight="b", rows=10, block=block, act="elu 1.0 1.0 1.0"),
        Constant(array="scale", rows=10, height=1, width=1),
        Norm(inputs=(3, 4, 4), eps=1e-5),
        Reduce(inputs=(3,), how="max", groups=1),
        Elements(inputs=(5, 6), op="sub"),
        Softmax(inputs=(7,), groups=2),
        Elements(inputs=(4, 8), op="mul"),
        Cat(inputs=(9, 3)),
        Conv(inputs=(3, 9), weight="b", rows=10, block=block),
    )
    weights = {"a": packed(0, 12, block), "b": packed(1, 10, block)}
    return Program((Sizes(3, 2, 2),), ops, (10, 11)), Stored(weights, {"scale": random(2, 10, 1).numpy()})


def packed(seed: int, n_in: int, block: int) -> Packed:
    weight = random(seed, 10, n_in)
    weight[random(seed + 1, *weight.shape) > 0] = 0
    return pack(weight.numpy(), random(seed + 2, 10).numpy(), block)


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(0, 70),
    block=st.sampled_from([1, 4, 8]),
    lanes=st.sampled_from([4, 8, 16]),
    threads=st.sampled_from([1, 2, 3]),
)
def test_samples_side_by_side_are_those_one_by_one(n: int, block: int, lanes: int, threads: int) -> None:
    program, stored = plan(block)
    x, shapes = random(n, n, 3, 2, 2), [(4, 5), (10,)]
    together = guarded_batch(program, stored, [x], shapes, lanes, threads)
    alone = guarded_run(program, stored, [x[:1] if n == 0 else x], shapes, lanes, threads)
    for got, want in zip(together, alone, strict=True):
        close(torch.from_numpy(got), torch.from_numpy(want[:n]))


def test_what_mixes_places_is_left_alone() -> None:
    """Each of these in place of the last operation."""
    program, _ = plan()
    assert side_by_side(program, 8) is not None
    others: list[Op] = [
        Conv(inputs=(3,), weight="b", rows=10, block=1, kernel=(3, 3), padding=(1, 1)),
        Conv(inputs=(4,), weight="b", rows=10, block=1),
        Conv(inputs=(3, 4), weight="b", rows=10, block=1),
        Reduce(inputs=(3,)),
        Norm(inputs=(3, 4, 9), eps=0.0),
        Cat(inputs=(3, 4)),
        Elements(inputs=(4,), act="relu"),
        Gather(inputs=(3,), array="g", rows=10, height=1, width=1),
        Constant(array="scale", rows=10, height=1, width=1),
        Elements(inputs=(0,), act="relu"),
    ]
    for op in others:
        assert side_by_side(Program(program.inputs, (*program.ops[:-1], op), program.outputs), 8) is None, op
    assert side_by_side(program, 2**27) is None  # too large


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_damaged_plan_is_an_error_or_a_plan(data: st.DataObject) -> None:
    program, stored = plan(4)
    damage_and_run(data, program, to_arrays(program, stored))


class Perceptron(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(48, 33), nn.GELU(), nn.LayerNorm(33), nn.Linear(33, 5))


def test_a_batch_of_an_artifact_is_computed_side_by_side(tmp_path: Path) -> None:
    model, x = Perceptron().eval(), random(0, 53, 3, 4, 4)
    lighten.export(model, (x,), tmp_path / "out", runtime="native")
    runner = lighten.load(tmp_path / "out")
    for n in (0, 1, 3, 53):
        got: Tensor = runner(x[:n])
        close(got, model(x[:n]).detach())


def test_weights_are_in_memory_once() -> None:
    program, stored = plan()
    found = engine_for(program, stored, [(20,), (10,)])
    assert isinstance(found, Batched)
    (blob,) = {id(way.engine.blob): way.engine.blob for way in found.ways}.values()
    assert sum(part is stored.weights["a"].value for part in blob.parts) == 1


def test_engines_share_the_floats_of_coded_weights() -> None:
    codes = torch.randint(-127, 128, (16, 50)).float().numpy()
    packed = pack(codes, None, 8).on_grid(np.ones(16, np.float32))
    program = Program((Sizes(50, 1, 1),), (Conv(inputs=(0,), weight="w", rows=16, block=8, bits=8),), (1,))
    engine = engine_for(program, Stored({"w": packed}), [(16,)])
    assert isinstance(engine, Batched)
    memory = engine.ways[0].engine.blob.memory.tobytes()
    assert memory.count(packed.value.tobytes()) == memory.count(packed.floats.value.tobytes()) == 1
