"""Tokens on the native engine: attention, norms and moved numbers against the float module."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st

pytest.importorskip("llvmlite")

from lighten.errors import ArtifactError
from lighten.runtime.native.packed import pack
from lighten.runtime.native.program import (
    Constant,
    Conv,
    Elements,
    Embedding,
    Gather,
    Matmul,
    Norm,
    Program,
    Reduce,
    Softmax,
)
from lighten.runtime.native.program import Tensor as Sizes
from lighten.runtime.native.stored import Stored, read_stored, to_arrays
from tests.runtime.native.guarded import TOLERANCE, close, damage_and_run, random, run

grids = st.sampled_from([(1, 1), (1, 2), (1, 17), (1, 65), (3, 7)])
lanes, threads, seeds = st.sampled_from([4, 8, 16]), st.sampled_from([2, 3, 8]), st.integers(0, 99)


@settings(max_examples=40, deadline=None)
@given(
    groups=st.integers(1, 3),
    depth=st.integers(1, 9),
    size=st.integers(1, 11),
    grid=grids,
    across=st.booleans(),
    starts=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    lanes=lanes,
    threads=threads,
    seed=seeds,
)
def test_any_product_of_activations_is_the_modules(
    groups: int,
    depth: int,
    size: int,
    grid: tuple[int, int],
    across: bool,
    starts: tuple[int, int],
    lanes: int,
    threads: int,
    seed: int,
) -> None:
    x = random(seed, 3, starts[0] + groups * depth + 1, *grid)
    rows, width = (size, depth) if across else (depth, size)
    w = random(seed + 1, 3, starts[1] + groups * rows + 1, 1, width)
    xs = x[:, starts[0] :][:, : groups * depth].reshape(3, groups, depth, -1)
    ws = w[:, starts[1] :][:, : groups * rows].reshape(3, groups, rows, width)
    wanted = (0.3 * (ws if across else ws.transpose(2, 3)) @ xs).reshape(3, groups * size, *grid)
    op = Matmul(inputs=(0, 1), starts=starts, groups=groups, depth=depth, size=size, across=across, scale=0.3)
    program = Program((Sizes(*x.shape[1:]), Sizes(*w.shape[1:])), (op,), (2,))
    close(run(program, Stored(), [x, w], tuple(wanted.shape[1:]), lanes, (1, threads)), wanted)


@settings(max_examples=30, deadline=None)
@given(groups=st.integers(1, 3), rows=st.integers(1, 40), grid=grids, lanes=lanes, threads=threads, seed=seeds)
def test_any_softmax_is_the_modules(
    groups: int, rows: int, grid: tuple[int, int], lanes: int, threads: int, seed: int
) -> None:
    x = 30 * random(seed, 2, groups, rows, *grid)
    x[0, 0, 0] = -np.inf
    op = Softmax(inputs=(0,), groups=groups)
    program = Program((Sizes(groups * rows, *grid),), (op,), (1,))
    got = run(program, Stored(), x.flatten(1, 2), (groups, rows, *grid), lanes, (1, threads))
    close(got, x.softmax(2))


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 70), grid=grids, offset=st.sampled_from([0, 100]), lanes=lanes, threads=threads, seed=seeds)
@example(rows=3, grid=(1, 65), offset=100, lanes=4, threads=2, seed=68)  # three values that are nearly the same
def test_any_layer_norm_is_the_modules(
    rows: int, grid: tuple[int, int], offset: float, lanes: int, threads: int, seed: int
) -> None:
    x, scale, shift = random(seed, 2, rows, *grid) + offset, random(seed + 1, rows), random(seed + 2, rows)
    ops = (
        Constant(array="scale", rows=rows, height=1, width=1),
        Constant(array="shift", rows=rows, height=1, width=1),
        Norm(inputs=(0, 1, 2), eps=1e-3),
    )
    stored = Stored(arrays={"scale": scale[:, None].numpy(), "shift": shift[:, None].numpy()})
    got = run(Program((Sizes(rows, *grid),), ops, (3,)), stored, x, (rows, *grid), lanes, (1, threads))
    exact = x.double()
    wanted = F.layer_norm(exact.movedim(1, -1), (rows,), scale.double(), shift.double(), 1e-3).movedim(-1, 1)
    # A mean of float32 is off by a rounding of each summand, which a small deviation blows up.
    off = (rows + 2) * torch.finfo(torch.float32).eps * exact.abs().amax(1) / (exact.var(1, correction=0) + 1e-3).sqrt()
    allowed = TOLERANCE * wanted.abs().max() + off[:, None] * scale.abs().max()
    assert ((got - wanted).abs() <= allowed).all()


@pytest.mark.parametrize(
    "op", [Softmax(inputs=(0,), groups=1), Norm(inputs=(0, 1, 1), eps=0.0)], ids=lambda op: op.kind
)
def test_margins_stay_zero_for_a_window_that_follows(op: Softmax | Norm) -> None:
    """Two runs, so that rubbish of the first would meet the second."""
    x, weight = random(0, 2, 3, 4, 5), random(1, 2, 3, 3, 3)
    ones = Constant(array="ones", rows=3, height=1, width=1)
    conv = Conv(inputs=(2,), weight="w", rows=2, block=1, kernel=(3, 3), padding=(1, 1))
    stored = Stored({"w": pack(weight.numpy(), None, 1)}, {"ones": np.ones((3, 1), "float32")})
    got = run(Program((Sizes(3, 4, 5),), (ones, op, conv), (3,)), stored, x, (2, 4, 5))
    inner = x.softmax(1) if op.kind == "softmax" else F.layer_norm(x.movedim(1, -1), (3,), *torch.ones(2, 3), 0.0)
    close(got, F.conv2d(inner if op.kind == "softmax" else inner.movedim(-1, 1), weight, padding=1))


@settings(max_examples=20, deadline=None)
@given(n_tokens=st.integers(1, 20), entries=st.integers(1, 9), rows=st.integers(1, 9), threads=threads, seed=seeds)
def test_tokens_are_looked_up_and_unknown_ones_are_not(
    n_tokens: int, entries: int, rows: int, threads: int, seed: int
) -> None:
    make = torch.Generator().manual_seed(seed)
    tokens = torch.randint(-1, entries + 1, (2, n_tokens), generator=make).float()
    tokens[0, 0] = float("nan") if seed % 2 else 0
    table = random(seed, entries, rows)
    op = Embedding(inputs=(0,), table="table", entries=entries, rows=rows)
    stored = Stored(arrays={"table": table.numpy()})
    got = run(Program((Sizes(n_tokens, 1, 1),), (op,), (1,)), stored, tokens, (rows, n_tokens), counts=(1, threads))
    known = (tokens >= 0) & (tokens < entries)
    wanted = table[tokens.where(known, torch.zeros(())).long()].where(known[..., None], torch.tensor(float("nan")))
    assert torch.equal(got.transpose(1, 2).nan_to_num(7.0), wanted.nan_to_num(7.0))


def token_plan() -> tuple[Program, Stored]:
    """An attention layer with its norm and positions; its result, mixed with a constant, and its mean."""
    make = np.random.default_rng(0)
    grid = {"rows": 6, "height": 1, "width": 1}
    ops = (
        Constant(array="positions", rows=6, height=1, width=5),
        Elements(inputs=(0, 1), op="add"),
        Constant(array="scale", **grid),
        Constant(array="shift", **grid),
        Norm(inputs=(2, 3, 4), eps=1e-5),
        Conv(inputs=(5,), weight="qkv", rows=18, block=4),
        Matmul(inputs=(6, 6), starts=(0, 6), groups=2, depth=3, size=5, across=False, scale=0.5),
        Softmax(inputs=(7,), groups=2),
        Matmul(inputs=(8, 6), starts=(0, 12), groups=2, depth=5, size=3, across=True, scale=1.0),
        Conv(inputs=(9, 2), weight="out", rows=6, block=1),
        Gather(inputs=(10, 3), array="moved", rows=5, height=1, width=2),
        Reduce(inputs=(11,)),
        Embedding(inputs=(12,), table="table", entries=3, rows=2),
    )
    weights = {
        "qkv": pack(make.standard_normal((18, 6)).astype("float32"), None, 4),
        "out": pack(make.standard_normal((6, 6)).astype("float32"), None, 1),
    }
    arrays = {name: make.standard_normal((6, n)).astype("float32") for name, n in PLAN_ARRAYS.items()}
    arrays["table"] = make.standard_normal((3, 2)).astype("float32")
    arrays["moved"] = make.integers(0, 36, (5, 2))
    return Program((Sizes(6, 1, 5),), ops, (11, 12, 13)), Stored(weights, arrays)


PLAN_ARRAYS = {"positions": 5, "scale": 1, "shift": 1}


def test_stored_arrays_are_read_as_they_were() -> None:
    program, stored = token_plan()
    arrays = to_arrays(program, stored)
    assert arrays["moved"].dtype == np.uint8
    read = read_stored(program, arrays)
    for name, array in stored.arrays.items():
        np.testing.assert_array_equal(read.arrays[name], array)
    for name, changed in (("moved", arrays["moved"] + np.uint8(200)), ("scale", arrays["scale"][:5])):
        with pytest.raises(ArtifactError, match=name):
            read_stored(program, {**arrays, name: changed})


@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_a_damaged_plan_of_tokens_is_an_error_or_a_plan(data: st.DataObject) -> None:
    program, stored = token_plan()
    damage_and_run(data, program, to_arrays(program, stored))
