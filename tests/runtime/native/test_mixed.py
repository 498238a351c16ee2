"""Models in parts: what a list of parts may say, and parts that are called by turns."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

pytest.importorskip("llvmlite")

from lighten.errors import ArtifactError
from lighten.runtime.artifact import Artifact, write_artifact
from lighten.runtime.native.mixed import Mixed
from lighten.runtime.native.packed import pack
from lighten.runtime.native.parts import NATIVE, ONNXRUNTIME, Part, Parts
from lighten.runtime.native.program import Conv, Program
from lighten.runtime.native.program import Tensor as Sizes
from lighten.runtime.native.stored import Stored, to_arrays
from lighten.runtime.runner import load
from lighten.runtime.spec import Array, TensorSpec
from tests.runtime.models import IN, OUT, WEIGHT, linear

MIDDLE = TensorSpec("middle", "float32", OUT.shape)
SQUARE = np.array([[1.0, -1.0], [2.0, 0.5]], "float32")
WANTED = Parts(
    (
        Part(runtime=ONNXRUNTIME, inputs=(IN,), outputs=(MIDDLE,)),
        Part(runtime=NATIVE, inputs=(MIDDLE,), outputs=(TensorSpec("last", "float32", OUT.shape),)),
    ),
    ("last", "middle"),
)
OUTPUTS = [OUT, TensorSpec("z", "float32", OUT.shape)]
TEXT = WANTED.to_json()


def write_two_parts(folder: Path, text: str = TEXT, model: bytes | None = None) -> Artifact:
    """middle = x @ WEIGHT by ONNX Runtime, last = middle @ SQUARE by the engine."""
    program = Program((Sizes(2, 1, 1),), (Conv(inputs=(0,), weight="w", rows=2, block=1),), (1,))
    arrays = to_arrays(program, Stored({"w": pack(SQUARE.T.copy(), None, 1)}))

    def write_files(to: Path) -> None:
        (to / "parts.json").write_text(text)
        (to / "part0-model.onnx").write_bytes(linear() if model is None else model)
        (to / "part1-plan.json").write_text(program.to_json())
        save_file(arrays, to / "part1-weights.safetensors")

    return write_artifact(
        folder, runtime="native", options={"threads": 2}, inputs=[IN], outputs=OUTPUTS, write_files=write_files
    )


def samples(n: int) -> Array:
    return np.random.default_rng(n).standard_normal((n, 3)).astype("float32")


def test_parts_are_called_by_turns(tmp_path: Path) -> None:
    run = load(write_two_parts(tmp_path / "two").path)
    for n in (0, 1, 3):
        last, middle = run(samples(n))
        np.testing.assert_allclose(middle, samples(n) @ WEIGHT, rtol=1e-6)
        np.testing.assert_allclose(last, samples(n) @ WEIGHT @ SQUARE, rtol=1e-5, atol=1e-5)


def test_callers_at_the_same_time_get_their_own_answers(tmp_path: Path) -> None:
    run = load(write_two_parts(tmp_path / "two").path)
    inputs = [samples(1 + i % 5) + i for i in range(64)]
    with ThreadPoolExecutor(8) as pool:
        for (last, _), x in zip(pool.map(run, inputs), inputs, strict=True):
            np.testing.assert_allclose(last, x @ WEIGHT @ SQUARE, rtol=1e-4, atol=1e-4)


def test_a_list_of_parts_is_read_as_it_was_written() -> None:
    assert Parts.from_json(TEXT, [IN], OUTPUTS) == WANTED


def damage(change: Callable[[dict[str, Any]], object]) -> str:
    data = json.loads(TEXT)
    change(data)
    return json.dumps(data)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda d: d.update(version=2), "version 2"),
        (lambda d: d.update(more=1), "just the fields"),
        (lambda d: d.update(parts=[]), "no list of 1 to"),
        (lambda d: d["parts"].reverse(), "'middle' is read, and nothing made it before"),
        (lambda d: d["parts"][0].update(runtime="torch"), "on the runtime 'torch'"),
        (lambda d: d["parts"][0]["inputs"].append(3), "3 is read, and nothing made it"),
        (lambda d: d["parts"][1]["outputs"][0].update(name="x"), "two values are called 'x'"),
        (lambda d: d["parts"][1]["outputs"][0].update(shape=["batch", 3]), "are not those of the manifest"),
        (lambda d: d["parts"][1]["outputs"][0].update(dtype="int64"), "are not those of the manifest"),
        (lambda d: d["outputs"].pop(), "are not those of the manifest"),
    ],
)
def test_parts_that_do_not_fit_are_refused(change: Callable[[dict[str, Any]], object], reason: str) -> None:
    with pytest.raises(ArtifactError, match=reason):
        Parts.from_json(damage(change), [IN], OUTPUTS)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_damaged_list_is_an_error_or_a_list(data: st.DataObject) -> None:
    """Any number or word replaced: what is accepted can run in its order, and makes the outputs."""
    raw = json.loads(TEXT)
    spots: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
            spots.append((node, key))
            walk(node[key])

    walk(raw)
    node, key = data.draw(st.sampled_from(spots))
    node[key] = data.draw(
        st.sampled_from([0, -1, 2**70, 1.5, None, "x", "middle", "last", "native", [], {}, True, ["batch", 2], [[]]])
    )
    try:
        found = Parts.from_json(json.dumps(raw), [IN], OUTPUTS)
    except ArtifactError:
        return
    known = {IN.name}
    for part in found.parts:
        assert {spec.name for spec in part.inputs} <= known
        known |= {spec.name for spec in part.outputs}
    assert set(found.outputs) <= known


def test_files_that_are_not_the_parts_are_refused(tmp_path: Path) -> None:
    def widen(data: dict[str, Any]) -> None:
        data["parts"][0]["outputs"][0]["shape"] = ["batch", 3]
        data["outputs"] = ["last", "last"]

    with pytest.raises(ArtifactError, match=r"lists the inputs .* but its plan has \[2\] numbers a sample"):
        load(write_two_parts(tmp_path / "wider", damage(widen)).path)
    swapped = damage(lambda d: [part.update(runtime=NATIVE) for part in d["parts"]])
    with pytest.raises(ArtifactError, match="Cannot load the native program"):
        load(write_two_parts(tmp_path / "swapped", swapped).path)
    with pytest.raises(ArtifactError, match="cannot load"):
        load(write_two_parts(tmp_path / "garbage", model=b"garbage").path)
    with pytest.raises(ArtifactError, match="reads 2 values and makes 1, but its model has 1 inputs and 1 outputs"):
        load(write_two_parts(tmp_path / "two", damage(lambda d: d["parts"][0]["inputs"].append("x"))).path)


def test_a_tensor_that_is_not_what_was_promised_never_reaches_native_code(tmp_path: Path) -> None:
    """The model makes one number a sample where the engine would read two."""
    run = load(write_two_parts(tmp_path / "short", model=linear(WEIGHT[:, :1])).path)
    with pytest.raises(ArtifactError, match=r"'middle' is float32 \[4, 1\] and not float32 \[4, 2\]"):
        run(samples(4))


@pytest.mark.parametrize("wrong", [samples(3)[:, :2], samples(2)[:, :2].astype("float64"), samples(2)[:, :1]])
def test_every_tensor_that_passes_is_of_the_calls_batch(wrong: Array) -> None:
    part = Part(runtime=ONNXRUNTIME, inputs=(IN,), outputs=(MIDDLE,))
    with pytest.raises(ArtifactError, match="another tensor than it promises"):
        Mixed([IN], Parts((part,), ("middle",)), [lambda arrays: [wrong]])([samples(2)])
    with pytest.raises(ArtifactError, match="has a batch"):
        Mixed([TensorSpec("x", "float32", (3,))], Parts((part,), ("middle",)), [lambda arrays: [wrong]])


def test_what_is_returned_is_the_callers_own() -> None:
    """An output may be an input, or another output as well."""
    part = Part(runtime=ONNXRUNTIME, inputs=(IN,), outputs=(MIDDLE,))
    made = samples(2)[:, :2].copy()
    run = Mixed([IN], Parts((part,), ("x", "middle", "middle")), [lambda arrays: [made]])
    x = samples(2)
    outputs = run([x])
    for i, one in enumerate(outputs):
        np.testing.assert_array_equal(one, x if i == 0 else made)
        assert not any(np.shares_memory(one, other) for other in (x, *outputs[:i]))
