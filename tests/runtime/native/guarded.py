"""Programs run with canaries around their memory, in every way a batch can be cut; and numbers that must be close."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from lighten.errors import ArtifactError
from lighten.export.native import to_native
from lighten.graph.capture import capture
from lighten.runtime.native import load_program
from lighten.runtime.native.batch import Batched, engine_for, side_by_side
from lighten.runtime.native.emit.blob import aligned
from lighten.runtime.native.engine import Engine
from lighten.runtime.native.jit import host_target
from lighten.runtime.native.packed import Array
from lighten.runtime.native.program import Program
from lighten.runtime.native.schedule import Target
from lighten.runtime.native.stored import Stored, read_stored

CANARY = 4096
# Sums of up to 2000 products in another order: 2000 · 2^-24 = 1.2e-4 of the sum of sizes in the worst case.
TOLERANCE = 1e-4


def run(
    program: Program,
    stored: Stored,
    x: Tensor | Sequence[Tensor],
    shape: tuple[int, ...],
    lanes: int = 16,
    counts: tuple[int, ...] = (2,),
) -> Tensor:
    """The same numbers from every count of threads."""
    inputs = [x] if isinstance(x, Tensor) else x
    first, *others = (guarded_run(program, stored, inputs, [shape], lanes, threads)[0] for threads in counts)
    for other in others:
        np.testing.assert_array_equal(other, first)
    return torch.from_numpy(first)


def guarded_run(
    program: Program,
    stored: Stored,
    inputs: Sequence[Tensor],
    shapes: Sequence[tuple[int, ...]],
    lanes: int,
    threads: int,
) -> list[Array]:
    """All samples at once, then each on its own, with every layer shared and canaries on both sides of every arena."""
    engine = Engine(program, stored, shapes, threads=threads, target=target_of_lanes(lanes))
    arenas = guard_(engine)
    outputs = engine([x.numpy() for x in inputs])
    for i in range(len(inputs[0])):
        alone = engine([x[i : i + 1].numpy() for x in inputs])
        for one, all_of_it in zip(alone, outputs, strict=True):
            np.testing.assert_array_equal(one[0], all_of_it[i])
    assert_untouched(arenas)
    return outputs


def guarded_batch(
    program: Program,
    stored: Stored,
    inputs: Sequence[Tensor],
    shapes: Sequence[tuple[int, ...]],
    lanes: int,
    threads: int,
) -> list[Array]:
    """Samples side by side where the program allows it, with canaries around the arenas of every way."""
    found = engine_for(program, stored, shapes, threads=threads, target=target_of_lanes(lanes))
    engines = [way.engine for way in found.ways] if isinstance(found, Batched) else [found]
    arenas = [guard_(engine) for engine in engines]
    outputs = found([x.numpy() for x in inputs])
    for each in arenas:
        assert_untouched(each)
    return outputs


def target_of_lanes(lanes: int) -> Target:
    """The host's, with at most that many lanes and every layer shared."""
    host = host_target()
    return Target(min(lanes, host.lanes), host.registers, barrier=0)


def guard_(engine: Engine) -> list[Array]:
    """The arenas that the engine will make, each between canaries."""
    arenas = []
    inner = engine.new_data

    def guarded() -> Array:
        made = inner()
        outer = aligned(len(made) + 2 * CANARY)
        outer[:] = 0xA5
        outer[CANARY:-CANARY] = made
        arenas.append(outer)
        return outer[CANARY:-CANARY]

    engine.new_data = guarded  # type: ignore[method-assign]
    return arenas


def assert_untouched(arenas: Sequence[Array]) -> None:
    for arena in arenas:
        assert (arena[:CANARY] == 0xA5).all()
        assert (arena[-CANARY:] == 0xA5).all()


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def close(got: Tensor, wanted: Tensor) -> None:
    scale = float(wanted[wanted.isfinite()].abs().max()) if wanted.isfinite().any() else 1.0
    torch.testing.assert_close(got, wanted, rtol=TOLERANCE, atol=TOLERANCE * max(scale, 1e-3), equal_nan=True)


def written(model: nn.Module, inputs: Tensor | tuple[Tensor, ...], folder: Path) -> tuple[Program, Stored]:
    """What an artifact of the model holds, read again."""
    inputs = inputs if isinstance(inputs, tuple) else (inputs,)
    write_files, *_ = to_native(capture(model, inputs), inputs)
    write_files(folder)
    return load_program(folder)


def damage_and_run(data: st.DataObject, plan: Program, arrays: Mapping[str, Array]) -> None:
    """Any number or word of the plan replaced: refused, or run within its arena with what is stored."""
    raw = json.loads(plan.to_json())
    spots: list[tuple[object, ...]] = []

    def walk(node: object, path: tuple[object, ...] = ()) -> None:
        items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, value in items:
            spots.append((*path, key))
            walk(value, (*path, key))

    walk(raw)
    *path, key = data.draw(st.sampled_from(spots))
    target = raw
    for step in path:
        target = target[step]
    target[key] = data.draw(
        st.sampled_from([0, 1, 2, 5, -1, 2**31, 2**70, 1.5, None, "x", [], {}, True, [1, 1], [3, 9, 9]])
    )
    try:
        program = Program.from_json(json.dumps(raw))
        stored = read_stored(program, arrays)
    except ArtifactError:
        return
    inputs = [torch.randn(2, *dataclasses.astuple(sizes)) for sizes in program.inputs]
    shapes = [dataclasses.astuple(program.tensors[at]) for at in program.outputs]
    guarded_run(program, stored, inputs, shapes, lanes=16, threads=2)
    if side_by_side(program, 2) is not None:
        guarded_batch(program, stored, inputs, shapes, lanes=16, threads=2)
