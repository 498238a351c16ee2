"""Retune: how many outputs a block of each product has, by timing the layers on this CPU.

Export chooses R by costs that were measured on one CPU (export/native/products.py). Another CPU has other vectors and
other registers, so here every layer is computed alone, with every R that may win, by turns; the quickest stays. No
weight changes, only which zeros are stored beside others.
"""

import math
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lighten.runtime.artifact import Artifact
from lighten.runtime.native import PLAN, WEIGHTS, load_program, save_program
from lighten.runtime.native.batch import engine_for
from lighten.runtime.native.depthwise import find_depthwise
from lighten.runtime.native.packed import Packed
from lighten.runtime.native.program import BLOCKS, Conv, Program
from lighten.runtime.native.schedule import Target
from lighten.runtime.native.stored import Stored

# Stored numbers over the fewest that any R stores. A number is cheapest in the largest blocks, whose loads serve all of
# R: there it costs one multiplication, and at R = 1 up to two loads that cross a cache line each, so up to four.
HOPELESS = 4.0
BETTER = 0.97  # of the time as exported: within 3 % two runs of one kernel differ
ROUNDS = 15
LEAST_S = 2e-4  # of a timing, so that the clock and the call from Python do not count


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What was found for a product. place: which product of the program. block: R as exported. best: R from now on.

    ms: of the layer alone, one thread, at each R that was timed; in it is the copying in and out of a network of one
    layer, so the R differ by more within the network.
    """

    place: int
    block: int
    best: int
    ms: dict[int, float]


def retune(artifact: Artifact, batch: int) -> tuple[list[Choice], Callable[[Path], None]]:
    """The choices for artifact, of this runtime, and what writes its files with them. batch: samples a call.

    Raises:
        ArtifactError: it is damaged.
    """
    programs: dict[str, tuple[Program, Stored]] = {}
    choices: list[Choice] = []
    for prefix in [name.removesuffix(PLAN) for name in artifact.files if name.endswith(PLAN)]:
        program, stored = load_program(artifact.path, prefix)
        found = choose_blocks(program, stored, batch)
        changed = {choice.place: choice.best for choice in found if choice.best != choice.block}
        programs[prefix] = in_blocks(program, stored, changed)
        choices += found
    made_anew = {prefix + name for prefix in programs for name in (PLAN, WEIGHTS)}

    def write_files(folder: Path) -> None:
        for name in set(artifact.files) - made_anew:
            shutil.copyfile(artifact.path / name, folder / name)
        for prefix, (program, stored) in programs.items():
            save_program(program, stored, folder, prefix)

    return choices, write_files


def choose_blocks(program: Program, stored: Stored, batch: int, target: Target | None = None) -> list[Choice]:
    """A choice for each product but those that are windows. target: None = this CPU with all that it has."""
    windows = find_depthwise(program, stored)
    by_weight: dict[str, Choice] = {}  # a weight that serves several products has one R
    choices = []
    for i, op in enumerate(program.ops):
        if isinstance(op, Conv) and i not in windows:
            if op.weight not in by_weight:
                by_weight[op.weight] = _timed(program, stored, i, batch, target)
            choices.append(replace(by_weight[op.weight], place=i))
    return choices


def in_blocks(program: Program, stored: Stored, blocks: Mapping[int, int]) -> tuple[Program, Stored]:
    """The same program with so many outputs to a block, by the place of a product."""
    tensors, ops, weights = program.tensors, list(program.ops), dict(stored.weights)
    for i, block in blocks.items():
        op = ops[i]
        assert isinstance(op, Conv)
        weights[op.weight] = _in_blocks(stored.weights[op.weight], op, block, tensors[op.inputs[0]].rows)
        ops[i] = replace(op, block=block)
    return replace(program, ops=tuple(ops)), replace(stored, weights=weights)


def _in_blocks(weight: Packed, op: Conv, block: int, n_inputs: int) -> Packed:
    return weight.in_blocks(block, op.rows, n_inputs * math.prod(op.kernel))


def _timed(program: Program, stored: Stored, place: int, batch: int, target: Target | None) -> Choice:
    op, tensors = program.ops[place], program.tensors
    assert isinstance(op, Conv)
    inputs = [tensors[at] for at in op.inputs]
    out = tensors[len(program.inputs) + place]
    versions = {r: _in_blocks(stored.weights[op.weight], op, r, inputs[0].rows) for r in BLOCKS}
    fewest = min(version.value.size for version in versions.values())
    engines = {}
    for r, version in versions.items():
        if r == op.block or version.value.size <= HOPELESS * fewest:
            alone = replace(op, inputs=tuple(range(len(inputs))), block=r)
            one = Program(tuple(inputs), (alone,), (len(inputs),))
            shapes = [(out.rows, out.height, out.width)]
            engines[r] = engine_for(one, Stored({op.weight: version}), shapes, target=target, keeps_code=False)
    make = np.random.default_rng(0)
    given = [make.standard_normal((batch, t.rows, t.height, t.width), np.float32) for t in inputs]
    ms = _by_turns({r: partial(engine, given) for r, engine in engines.items()})
    best = min(ms, key=lambda r: ms[r])
    return Choice(place=place, block=op.block, best=best if ms[best] <= BETTER * ms[op.block] else op.block, ms=ms)


def _by_turns(calls: Mapping[int, Callable[[], Any]]) -> dict[int, float]:
    """Milliseconds of a call of each, the median of rounds in which all have a turn."""
    repeats = {}
    for r, call in calls.items():
        call()
        started = time.perf_counter()
        call()
        repeats[r] = max(1, math.ceil(LEAST_S / (time.perf_counter() - started)))
    rounds: dict[int, list[float]] = {r: [] for r in calls}
    for _ in range(ROUNDS):
        for r, call in calls.items():
            started = time.perf_counter()
            for _ in range(repeats[r]):
                call()
            rounds[r].append((time.perf_counter() - started) / repeats[r])
    return {r: 1e3 * float(np.median(each)) for r, each in rounds.items()}
