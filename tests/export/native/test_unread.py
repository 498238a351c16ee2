"""Places that nobody reads: left out, and the outputs are the same."""

import math
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("llvmlite")

from lighten.export.native.unread import without_unread
from lighten.runtime.native import load_program, save_program
from lighten.runtime.native.packed import pack
from lighten.runtime.native.program import (
    Cat,
    Constant,
    Conv,
    Elements,
    Gather,
    Matmul,
    Norm,
    Op,
    Pool,
    Program,
    Reduce,
    Softmax,
)
from lighten.runtime.native.program import Tensor as Sizes
from lighten.runtime.native.stored import Stored
from lighten.tasks.networks import ViT
from tests.runtime.native.guarded import close, guarded_run, random, written

ROWS = 6


@dataclass
class Drawn:
    """A program of random operations on tensors of ROWS rows, each of which may read any before it."""

    data: st.DataObject
    grid: tuple[int, int]
    ops: list[Op] = field(default_factory=list)
    stored: Stored = field(default_factory=Stored)

    def pick(self) -> int:
        return self.data.draw(st.sampled_from([i for i, t in enumerate(self.tensors) if self.is_usual(t)]))

    def is_usual(self, t: Sizes) -> bool:
        return (t.rows, t.height, t.width) == (ROWS, *self.grid)

    @property
    def tensors(self) -> list[Sizes]:
        return Program((Sizes(ROWS, *self.grid),), tuple(self.ops), ()).tensors

    def add(self, op: Op) -> int:
        self.ops.append(op)
        return len(self.ops)

    def store(self, array: np.ndarray) -> str:
        self.stored.arrays[name := f"a{len(self.stored.arrays)}"] = array
        return name

    def constant(self, places: int) -> int:
        array = random(len(self.ops), ROWS, places).numpy()
        grid = self.grid if places > 1 else (1, 1)
        return self.add(Constant(array=self.store(array), rows=ROWS, height=grid[0], width=grid[1]))

    def conv(self, kernel: tuple[int, int] = (1, 1), padding: tuple[int, int] = (0, 0)) -> Conv:
        weight = random(len(self.ops), ROWS, ROWS, *kernel).numpy()
        weight[np.abs(weight) < 0.5] = 0
        self.stored.weights[name := f"w{len(self.stored.weights)}"] = pack(weight, np.ones(ROWS, np.float32), 4)
        return Conv(inputs=(self.pick(),), weight=name, rows=ROWS, block=4, kernel=kernel, padding=padding)

    def one(self) -> None:
        places = math.prod(self.grid)
        match self.data.draw(st.integers(0, 10)):
            case 0:
                self.add(self.conv())
            case 1:
                op = self.conv()
                self.add(Conv(inputs=(op.inputs[0], self.pick()), weight=op.weight, rows=ROWS, block=4, act="relu"))
            case 2:
                self.add(self.conv(kernel=(1, 3), padding=(0, 1)))
            case 3:
                other = self.constant(1) if self.data.draw(st.booleans()) else self.pick()
                self.add(Elements(inputs=(self.pick(), other), op="add"))
            case 4:
                ones = self.constant(1)
                self.add(Norm(inputs=(self.pick(), ones, ones), eps=1e-3))
            case 5:
                self.add(Softmax(inputs=(self.pick(),), groups=2))
            case 6 if self.grid[0] == 1:
                scores = Matmul(
                    inputs=(self.pick(), self.pick()),
                    starts=(0, 0),
                    groups=2,
                    depth=3,
                    size=places,
                    across=False,
                    scale=1.0,
                )
                weights = self.add(Softmax(inputs=(self.add(scores),), groups=2))
                self.add(
                    Matmul(
                        inputs=(weights, self.pick()),
                        starts=(0, 0),
                        groups=2,
                        depth=places,
                        size=3,
                        across=True,
                        scale=1.0,
                    )
                )
            case 7:
                self.constant(places)
            case 8:
                both = self.add(Cat(inputs=(self.pick(), self.pick())))
                index = torch.randperm(2 * ROWS * places)[: ROWS * places].reshape(ROWS, places).numpy()
                self.add(
                    Gather(inputs=(both,), array=self.store(index), rows=ROWS, height=self.grid[0], width=self.grid[1])
                )
            case 9:
                self.add(Pool(inputs=(self.pick(),), mode="max", kernel=(1, 3), stride=(1, 1), padding=(0, 1)))
            case _:
                mean = self.add(Reduce(inputs=(self.pick(),)))
                self.add(Elements(inputs=(self.pick(), mean), op="mul"))

    def read_some(self) -> None:
        """A gather of some places of two tensors, of which the program's output is a part."""
        places = math.prod(self.grid)
        inputs = (self.pick(), self.pick())
        n = self.data.draw(st.integers(1, places))
        chosen = np.array(self.data.draw(st.lists(st.integers(0, places - 1), min_size=n, max_size=n)))
        start = np.array(self.data.draw(st.lists(st.sampled_from([0, ROWS * places]), min_size=ROWS, max_size=ROWS)))
        index = start[:, None] + np.arange(ROWS)[:, None] * places + chosen
        self.add(Gather(inputs=inputs, array=self.store(index), rows=ROWS, height=1, width=n))


@settings(max_examples=60, deadline=None)
@given(
    data=st.data(), grid=st.sampled_from([(1, 5), (1, 17), (3, 4)]), n=st.integers(1, 8), lanes=st.sampled_from([8, 16])
)
def test_any_program_gives_what_it_gave(data: st.DataObject, grid: tuple[int, int], n: int, lanes: int) -> None:
    drawn = Drawn(data, grid)
    for _ in range(n):
        drawn.one()
    drawn.read_some()
    outputs = (len(drawn.ops), *([drawn.pick()] if data.draw(st.booleans()) else []))
    program = Program((Sizes(ROWS, *grid),), tuple(drawn.ops), outputs)
    narrow, stored = without_unread(program, drawn.stored)
    shapes = [(t.rows, t.height, t.width) for t in (program.tensors[at] for at in outputs)]
    assert [(t.rows, t.height, t.width) for t in (narrow.tensors[at] for at in narrow.outputs)] == shapes
    x = random(0, 2, ROWS, *grid)
    wanted = guarded_run(program, drawn.stored, [x], shapes, lanes, 1)
    for threads in (1, 2):
        for one, other in zip(guarded_run(narrow, stored, [x], shapes, lanes, threads), wanted, strict=True):
            close(torch.from_numpy(one), torch.from_numpy(other))
    with tempfile.TemporaryDirectory() as folder:  # an array that lies in another order in memory is the same in a file
        save_program(narrow, stored, Path(folder))
        read = load_program(Path(folder))
    for one, other in zip(guarded_run(*read, [x], shapes, lanes, 1), wanted, strict=True):
        close(torch.from_numpy(one), torch.from_numpy(other))
    again, _ = without_unread(narrow, stored)
    assert again.tensors == narrow.tensors


def test_a_class_token_alone_goes_through_the_last_block(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = ViT(width=24, depth=2).eval(), torch.randn(2, 1, 28, 28)
    program, stored = written(model, x, tmp_path)
    places = [program.tensors[1 + i].width for i, op in enumerate(program.ops) if isinstance(op, Conv)]
    # Patches; queries, keys and values, out, up and down of the first block; of the last; the head.
    assert places == [7, 50, 50, 50, 50, 50, 1, 1, 1, 1]
    (logits,) = guarded_run(program, stored, [x], [(10,)], 16, 2)
    with torch.no_grad():
        close(torch.from_numpy(logits), model(x))


def test_more_than_half_of_the_places_are_made_as_all_are() -> None:
    double = Elements(inputs=(0, 0), op="add")
    for n_read in (2, 3):
        index = np.arange(n_read)[None]
        read = Gather(inputs=(1,), array="a0", rows=1, height=1, width=n_read)
        program = Program((Sizes(1, 1, 5),), (double, read), (2,))
        narrow, _ = without_unread(program, Stored(arrays={"a0": index}))
        assert narrow.tensors[1].width == (5 if n_read == 3 else 2)
