"""Elements, reductions and RMS norm as programs: any sizes that fit, any lanes and threads, and damaged plans."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("llvmlite")

from lighten.runtime.native.packed import pack
from lighten.runtime.native.program import (
    ACTIVATIONS,
    OPERATIONS,
    REDUCTIONS,
    Constant,
    Conv,
    Elements,
    Norm,
    Program,
    Reduce,
    infer,
    is_act,
)
from lighten.runtime.native.program import Tensor as Sizes
from lighten.runtime.native.stored import Stored, to_arrays
from tests.runtime.native.guarded import close, damage_and_run, random, run

grids = st.sampled_from([(1, 1), (1, 2), (1, 17), (1, 65), (3, 7)])
lanes, threads, seeds = st.sampled_from([4, 8, 16]), st.sampled_from([1, 2, 3, 8]), st.integers(0, 99)


def _compared(compare: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor) -> Tensor:
    return compare(a, b).float()


ORACLES: dict[str, Callable[..., Tensor]] = {
    "none": lambda a: a,
    "where": lambda a, b, c: torch.where(a != 0, b, c),
    "max": torch.maximum,
    "min": torch.minimum,
    **{name: getattr(torch, name) for name in ("add", "sub", "mul", "div")},
    **{name: partial(_compared, getattr(torch, name)) for name in ("eq", "ne", "lt", "le", "gt", "ge")},
}


@settings(max_examples=80, deadline=None)
@given(
    op=st.sampled_from(sorted(OPERATIONS)),
    rows=st.integers(1, 19),
    grid=grids,
    narrow=st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=2),
    full=st.integers(0, 2),
    pads=st.booleans(),
    lanes=lanes,
    threads=threads,
    seed=seeds,
)
def test_any_elements_are_those_of_torch(
    op: str,
    rows: int,
    grid: tuple[int, int],
    narrow: list[tuple[bool, bool]],
    full: int,
    pads: bool,
    lanes: int,
    threads: int,
    seed: int,
) -> None:
    """narrow: whether each input but one has one row, and one place. pads: a window follows, with zeros around."""
    n = OPERATIONS[op]
    shapes = [(1 if row else rows, *((1, 1) if place else grid)) for row, place in narrow]
    shapes.insert(full % n, (rows, *grid))
    inputs = [random(seed + i, 2, *shape).round(decimals=0) for i, shape in enumerate(shapes[:n])]
    inputs[0][0, 0, 0, 0] = float("nan")
    wanted = ORACLES[op](*inputs)
    ops: list[Elements | Conv] = [Elements(inputs=tuple(range(n)), op=op, act="leaky_relu 0.5")]
    wanted, stored = F.leaky_relu(wanted, 0.5), Stored()
    if pads:
        weight = random(seed, 3, rows, 3, 3)
        ops.append(Conv(inputs=(n,), weight="w", rows=3, block=1, kernel=(3, 3), padding=(1, 1)))
        wanted, stored = F.conv2d(wanted, weight, padding=1), Stored({"w": pack(weight.numpy(), None, 1)})
    program = Program(tuple(Sizes(*shape) for shape in shapes[:n]), tuple(ops), (n + len(ops) - 1,))
    program = Program.from_json(program.to_json())
    close(run(program, stored, inputs, tuple(wanted.shape[1:]), lanes, (1, threads)), wanted)


@settings(max_examples=60, deadline=None)
@given(
    how=st.sampled_from(REDUCTIONS),
    groups=st.integers(0, 3),
    rows=st.integers(1, 40),
    grid=grids,
    lanes=lanes,
    threads=threads,
    seed=seeds,
)
def test_any_reduction_is_the_one_of_torch(
    how: str, groups: int, rows: int, grid: tuple[int, int], lanes: int, threads: int, seed: int
) -> None:
    x = random(seed, 2, max(groups, 1), rows, *grid)
    x[0, 0, 0, 0, 0] = float("nan")
    reduce = {"mean": torch.mean, "sum": torch.sum, "max": torch.amax, "min": torch.amin}[how]
    wanted = reduce(x, 2) if groups else reduce(x.flatten(1, 2), (2, 3))
    x, op = x.flatten(1, 2), Reduce(inputs=(0,), how=how, groups=groups)
    program = Program((Sizes(*x.shape[1:]),), (op,), (1,))
    close(run(program, Stored(), x, tuple(wanted.shape[1:]), lanes, (1, threads)), wanted)


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 40), grid=grids, lanes=lanes, threads=threads, seed=seeds)
def test_any_rms_norm_is_the_one_of_torch(
    rows: int, grid: tuple[int, int], lanes: int, threads: int, seed: int
) -> None:
    x, scale = 10 + random(seed, 2, rows, *grid), random(seed + 1, rows)
    ops = (
        Constant(array="scale", rows=rows, height=1, width=1),
        Constant(array="shift", rows=rows, height=1, width=1),
        Norm(inputs=(0, 1, 2), eps=1e-3, centered=False),
    )
    stored = Stored(arrays={"scale": scale[:, None].numpy(), "shift": torch.zeros(rows, 1).numpy()})
    got = run(Program((Sizes(rows, *grid),), ops, (3,)), stored, x, (rows, *grid), lanes, (1, threads))
    close(got, F.rms_norm(x.movedim(1, -1), (rows,), scale, 1e-3).movedim(-1, 1))


def test_activations_are_names_with_their_numbers() -> None:
    assert all(is_act(" ".join([name, *["0.5"] * n])) for name, n in ACTIVATIONS.items())
    for act in ("relu 0.5", "clamp 0.0", "clamp 0.0 nan", "clamp 0 1", "clamp 0.0  1.0", "elu 1.0 1.0 x", "other", ""):
        assert not is_act(act)
        with pytest.raises(ValueError, match="does not fit"):
            infer(Elements(inputs=(0,), act=act), [Sizes(2, 1, 1)])


def test_what_does_not_fit_is_refused() -> None:
    for sizes in ([(2, 1, 1), (3, 1, 1)], [(2, 2, 3), (2, 3, 2)], [(4, 1, 3), (4, 1, 2)], [(4, 1, 3)]):
        with pytest.raises(ValueError, match="does not fit"):
            infer(Elements(inputs=(0, 1), op="add"), [Sizes(*each) for each in sizes])
    with pytest.raises(ValueError, match="3 groups"):
        infer(Reduce(inputs=(0,), groups=3), [Sizes(4, 1, 1)])


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_a_damaged_plan_is_an_error_or_a_plan(data: st.DataObject) -> None:
    ops = (
        Reduce(inputs=(0,), how="max", groups=2),  # 2 x (3, 5)
        Reduce(inputs=(1,), how="sum", groups=1),  # 1 x (3, 5)
        Reduce(inputs=(0,)),  # 6 x 1
        Elements(inputs=(2, 0, 3), op="where", act="elu 1.0 2.0 0.5"),
        Elements(inputs=(3, 3), op="div", act="clamp -1.0 inf"),
        Constant(array="ones", rows=6, height=1, width=1),
        Norm(inputs=(4, 6, 5), eps=1e-5, centered=False),
    )
    stored = Stored(arrays={"ones": torch.ones(6, 1).numpy()})
    program = Program((Sizes(6, 3, 5),), ops, (7, 2))
    damage_and_run(data, program, to_arrays(program, stored))
