"""Threads of the native engine: they share samples and layers, and none of them is needed."""

import itertools
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("llvmlite")

from llvmlite import ir

from lighten.runtime.native.emit.code import Kernels
from lighten.runtime.native.emit.entry import add_entry
from lighten.runtime.native.engine import Engine, Job
from lighten.runtime.native.jit import host_target
from lighten.runtime.native.pace import PERIOD, TRIES, Pace
from lighten.runtime.native.packed import Array, pack
from lighten.runtime.native.program import Conv, Elements, Pool, Program, Reduce
from lighten.runtime.native.program import Tensor as Sizes
from lighten.runtime.native.schedule import Access, Target, cut, tilings
from lighten.runtime.native.stored import Stored


def shared(threads: int, *, lingers: bool = True) -> Engine:
    """A network with windows, a stride, a residual and a vector at its end, every layer of it shared."""
    rng = np.random.default_rng(0)
    weights = {
        name: pack(rng.standard_normal(shape).astype("float32"), None, block)
        for name, shape, block in (("a", (8, 3, 3, 3), 4), ("b", (8, 8, 3, 3), 4), ("c", (10, 8, 1, 1), 1))
    }
    same = {"kernel": (3, 3), "padding": (1, 1)}
    ops = (
        Conv(inputs=(0,), weight="a", rows=8, block=4, act="relu", **same),
        Conv(inputs=(1, 1), weight="b", rows=8, block=4, **same),
        Pool(inputs=(2,), mode="max", kernel=(2, 2), stride=(2, 2)),
        Elements(inputs=(3,), act="silu"),
        Reduce(inputs=(4,)),
        Conv(inputs=(5,), weight="c", rows=10, block=1),
    )
    host = host_target()
    target = Target(host.lanes, host.registers, barrier=0)
    program = Program((Sizes(3, 20, 20),), ops, (6,))
    return Engine(program, Stored(weights), [(10,)], threads=threads, target=target, lingers=lingers)


def samples(n: int) -> Array:
    return np.random.default_rng(n).standard_normal((n, 3, 20, 20)).astype("float32")


@pytest.mark.parametrize("threads", [2, 3, 8])  # more than there are cores, on most machines that run this
def test_any_number_of_threads_computes_the_same(threads: int) -> None:
    alone, together = shared(1), shared(threads)
    for n in (0, 1, 2, 3, 7, 8, 11, 1, 1):
        np.testing.assert_array_equal(together([samples(n)])[0], alone([samples(n)])[0])


def test_callers_at_the_same_time_get_their_own_answers() -> None:
    engine, alone = shared(8), shared(1)
    inputs = [samples(1 + i % 3) + i for i in range(64)]
    wanted = [alone([x])[0] for x in inputs]
    with ThreadPoolExecutor(64) as pool:
        for _ in range(5):
            for got, expected in zip(pool.map(lambda x: engine([x])[0], inputs), wanted, strict=True):
                np.testing.assert_array_equal(got, expected)


class Absent:
    """Helpers that never come, or too late."""

    def __init__(self) -> None:
        self.has_time, self.jobs = True, self
        self.asked: list[Job] = []

    def put(self, job: Job) -> None:
        self.asked.append(job)


def test_a_call_without_its_helpers_ends_and_what_they_do_later_is_nothing() -> None:
    engine, x = shared(3), samples(4)
    absent = Absent()
    engine._team = lambda: absent  # type: ignore[assignment, method-assign, return-value]
    (out,) = engine([x])
    np.testing.assert_array_equal(out, shared(1)([x])[0])
    assert len(absent.asked) == 2
    (arena,) = engine._idle
    data, cells, result = arena.data.copy(), arena.cells.copy(), out.copy()
    out[:], arena.data[:] = 7, 0
    for job in absent.asked:
        engine._run(*job.arguments)
    assert (out == 7).all()
    assert not arena.data.any()
    np.testing.assert_array_equal(arena.cells, cells)
    arena.data[:] = data
    np.testing.assert_array_equal(engine([x])[0], result)


@pytest.mark.parametrize("n", [1, 4])
def test_a_helper_that_comes_first_does_all_there_is_to_do(n: int) -> None:
    engine, x = shared(3), samples(n)
    absent = Absent()
    engine._team = lambda: absent  # type: ignore[assignment, method-assign, return-value]
    run = engine._run

    def late(*arguments: int) -> None:  # the caller loses its core before it begins
        for job in absent.asked:
            run(*job.arguments)
        run(*arguments)

    engine._run = late  # type: ignore[assignment]
    np.testing.assert_array_equal(engine([x])[0], shared(1)([x])[0])


def test_an_interrupted_call_leaves_nothing_behind() -> None:
    engine, x = shared(2), samples(1)
    expected = engine([x])[0].copy()
    run = engine._run

    def interrupt(*arguments: int) -> None:
        raise KeyboardInterrupt

    for _ in range(20):
        engine._run = interrupt  # type: ignore[assignment]
        with pytest.raises(KeyboardInterrupt):
            engine([x])
        engine._run = run
        np.testing.assert_array_equal(engine([x])[0], expected)


def test_threads_end_with_their_engine() -> None:
    engine = shared(3)
    before = set(threading.enumerate())
    engine([samples(1)])
    helpers = set(threading.enumerate()) - before
    assert len(helpers) == 2
    del engine
    for helper in helpers:
        helper.join(60)
        assert not helper.is_alive()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_shares_a_sample_too() -> None:
    engine, x = shared(2), samples(1)
    expected = engine([x])[0]
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(engine([x])[0], expected) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_small_network_is_not_shared() -> None:
    host = host_target()
    program = Program((Sizes(1, 4, 4),), (Reduce(inputs=(0,)),), (1,))
    engine = Engine(program, Stored(), [(1,)], threads=2, target=host)
    assert engine.pace is None
    assert engine.n_stages == 1
    before = threading.active_count()
    engine([np.ones((1, 1, 4, 4), np.float32)])
    assert threading.active_count() == before


def test_the_faster_way_is_taken_and_the_other_tried_again() -> None:
    pace = Pace()
    for faster in (False, True, False):  # what is faster changes with the machine
        shared = []
        for _ in range(PERIOD):
            shared.append(pace.shares())
            pace.took(shared[-1], 1.0 if shared[-1] == faster else 2.0)
        assert shared[: 2 * TRIES] == [True] * TRIES + [False] * TRIES
        assert set(shared[2 * TRIES :]) == {faster}


@given(
    work=st.lists(st.integers(0, 1000), min_size=1, max_size=40),
    parts=st.integers(1, 9),
)
def test_cuts_are_in_order_and_even_but_for_an_item(work: list[int], parts: int) -> None:
    cuts = cut(np.array(work), parts)
    assert (cuts[0], cuts[-1], len(cuts)) == (0, len(work), parts + 1)
    assert cuts == sorted(cuts)
    loads = [sum(work[low:high]) for low, high in itertools.pairwise(cuts)]
    assert max(loads) <= sum(work) / parts + max(work)


@given(
    cuts=st.lists(st.integers(0, 70), min_size=1, max_size=9),
    block=st.sampled_from([1, 4, 8]),
    lanes=st.sampled_from([8, 16]),
    rest=st.integers(1, 16),
)
def test_tilings_cover_every_place_once_and_by_its_part(cuts: list[int], block: int, lanes: int, rest: int) -> None:
    cuts = [0, *sorted(cuts)]
    n_columns = max(0, (cuts[-1] - 1) * lanes + min(rest, lanes))
    owner = np.full(cuts[-1] * lanes, -1)
    for kinds, parts in tilings(cuts, block, Target(lanes, 32), n_columns).items():
        for i, starts in enumerate(parts):
            for start in starts:
                covered = owner[start * lanes :][: sum(kinds)]
                assert (covered == -1).all()
                covered[:] = i
    wanted = np.repeat(np.arange(len(cuts) - 1), np.diff(cuts) * lanes)
    np.testing.assert_array_equal(owner[:n_columns], wanted[:n_columns])
    assert (owner[n_columns:] == -1).sum() == (8 if lanes == 16 and n_columns and rest <= 8 else 0)


def test_a_barrier_is_where_threads_would_meet() -> None:
    def access(reads: set[int], writes: set[int], is_whole: bool = False) -> Access:
        return Access(frozenset(reads), frozenset(writes), is_whole)

    made = access({1}, {2})
    assert access({2}, {3}).needs_barrier(made)  # reads what it writes
    assert access({3}, {1}).needs_barrier(made)  # writes where it reads
    assert access({3}, {2}).needs_barrier(made)  # writes where it writes
    assert not access({1}, {3}).needs_barrier(made)  # a second reader
    assert access({2}, {3}, True).needs_barrier(made)
    assert not access({2}, {3}, True).needs_barrier(access({1}, {2}, True))  # one thread, in order

    def by_columns(reads: set[int], writes: set[int], far: set[int], columns: tuple[int, ...] = (0, 2, 4)) -> Access:
        return Access(frozenset(reads), frozenset(writes), False, columns, frozenset(far))

    first = by_columns({1}, {2}, {1})
    assert not by_columns({2}, {3}, set()).needs_barrier(first)  # each part goes on with its columns
    assert not by_columns({3}, {2}, set()).needs_barrier(first)
    assert by_columns({2}, {3}, {2}).needs_barrier(first)  # reads those of others
    assert by_columns({2}, {3}, set(), (0, 1, 4)).needs_barrier(first)  # has other columns
    assert by_columns({3}, {1}, set()).needs_barrier(first)  # writes what others may still read
    assert access({2}, {3}).needs_barrier(first)


def test_helpers_that_do_not_linger_compute_the_same_and_do_not_spin_afterwards() -> None:
    together, alone = shared(2, lingers=False), shared(1)
    for n in (1, 2, 3):
        np.testing.assert_array_equal(together([samples(n)])[0], alone([samples(n)])[0])
    for lingers in (True, False):
        kernels = Kernels(ir.Module())
        add_entry(kernels, [], 2, lingers=lingers)
        assert ("linger" in str(kernels.module)) is lingers
