"""Retuning: blocks of another size hold the same weights, and the quickest size is taken where it is clearly so."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

pytest.importorskip("llvmlite")

import lighten
from lighten.runtime.artifact import Artifact, write_artifact
from lighten.runtime.native import load_program, retune
from lighten.runtime.native.packed import Packed, pack
from lighten.runtime.native.program import BLOCKS, Conv
from tests.runtime.native.guarded import random
from tests.runtime.native.test_mixed import write_two_parts

X = random(0, 3, 4, 8, 8)


class Net(nn.Module):
    """A product with a residual, one with a stride, a depthwise one, the first again, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.same = nn.Conv2d(4, 4, 3, padding=1)
        self.down = nn.Conv2d(4, 12, 3, 2, padding=1)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.last = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.same(self.same(x).relu()) + x
        out: torch.Tensor = self.last(self.depthwise(self.down(x).relu()).mean((2, 3)))
        return out


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    torch.manual_seed(0)
    pruned = lighten.prune(Net().eval(), 0.6, granularity="element", example_inputs=(X,), exclude=["depthwise"])
    return lighten.export(pruned, (X,), tmp_path_factory.mktemp("nets") / "out", runtime="native")


@pytest.fixture
def quickest(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[int, float]], None]:
    """What a call takes at each R, by turns, without a clock; every call is made once."""

    def take(ms: dict[int, float]) -> None:
        def by_turns(calls: Mapping[int, Callable[[], Any]]) -> dict[int, float]:
            assert all(np.isfinite(call()[0]).all() for call in calls.values())
            return {r: ms[r] for r in calls}

        monkeypatch.setattr(retune, "_by_turns", by_turns)

    return take


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_blocks_of_any_size_hold_the_same_matrix(data: st.DataObject) -> None:
    rows, columns = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 12))
    make = np.random.default_rng(data.draw(st.integers(0, 99)))
    codes = make.integers(-7, 8, (rows, columns)) * (make.random((rows, columns)) < 0.4)
    scale, bias = make.random(rows, np.float32) + 0.1, make.standard_normal(rows).astype(np.float32)
    first, other = data.draw(st.sampled_from(BLOCKS)), data.draw(st.sampled_from(BLOCKS))
    floats = pack(codes * scale[:, None], bias, first)
    kinds: list[Callable[[], Packed]] = [
        lambda: floats,
        lambda: floats.on_grid(scale),
        lambda: pack(codes.astype(np.float32), bias, first).in_bfloat16(),
    ]
    for kind in kinds:
        packed = kind()
        moved = packed.in_blocks(other, rows, columns)
        assert moved.block == other
        assert moved.value.dtype == packed.value.dtype
        np.testing.assert_array_equal(moved.dense(columns)[:rows], packed.dense(columns)[:rows])
        np.testing.assert_array_equal(moved.bias[:rows], bias)
        back = moved.in_blocks(first, rows, columns)
        np.testing.assert_array_equal(back.value, packed.value)
        np.testing.assert_array_equal(back.index, packed.index)


def test_what_is_quickest_is_written_and_computes_the_same(artifact: Artifact, tmp_path: Path, quickest: Any) -> None:
    quickest({1: 0.9, 2: 0.5, 4: 0.8, 8: 1.0, 16: 2.0})
    choices, write_files = retune.retune(artifact, batch=1)
    about = {name: getattr(artifact, name) for name in ("runtime", "options", "inputs", "outputs", "plan", "notes")}
    again = write_artifact(tmp_path / "again", write_files=write_files, **about)
    program, _ = load_program(again.path)
    products = {i: op for i, op in enumerate(program.ops) if isinstance(op, Conv)}
    assert [choice.best for choice in choices] == [2] * 4  # the shared convolution twice, the stride, the linear layer
    assert {choice.place for choice in choices} | {i for i, op in products.items() if op.block == 1} == {*products}
    assert sum(op.block == 2 for op in products.values()) == 4
    x = random(1, 5, 4, 8, 8)
    torch.testing.assert_close(lighten.load(again.path)(x), lighten.load(artifact.path)(x), rtol=1e-5, atol=1e-6)


def test_within_the_noise_of_timing_blocks_stay(artifact: Artifact, quickest: Any) -> None:
    quickest({1: 1.0, 2: 0.98, 4: 0.99, 8: 1.0, 16: 1.0})
    choices, _ = retune.retune(artifact, batch=1)
    assert [choice.best for choice in choices] == [choice.block for choice in choices]


def test_what_stores_far_more_numbers_is_not_timed(tmp_path: Path) -> None:
    layer = nn.Linear(64, 64)
    layer.weight.data *= torch.eye(64)  # blocks of R store R times as many numbers
    artifact = lighten.export(layer.eval(), (random(0, 2, 64),), tmp_path / "out", runtime="native")
    (choice,), _ = retune.retune(artifact, batch=2)
    assert {*choice.ms} == {1, 2, 4} | {choice.block}
    assert all(ms > 0 for ms in choice.ms.values())


def test_of_a_model_in_parts_the_engines_are_retuned(tmp_path: Path, quickest: Any) -> None:
    quickest({1: 1.0, 2: 0.5, 4: 1.0, 8: 1.0, 16: 1.0})
    artifact = write_two_parts(tmp_path / "out")
    choices, write_files = retune.retune(artifact, batch=1)
    assert [(choice.block, choice.best) for choice in choices] == [(1, 2)]
    (tmp_path / "files").mkdir()
    write_files(tmp_path / "files")
    assert {path.name for path in (tmp_path / "files").iterdir()} == {*artifact.files}
    assert load_program(tmp_path / "files", "part1-")[0].ops[0].block == 2  # type: ignore[union-attr]
