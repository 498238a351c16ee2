"""What a network spends on each layer, as the engine itself tells."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("llvmlite")

import lighten
from lighten.errors import ArtifactError
from lighten.graph.capture import capture
from lighten.prune import prune
from lighten.quantize import quantize
from lighten.runtime.artifact import read_artifact
from lighten.runtime.native import PLAN, compile, load_program
from lighten.runtime.native.profiler import Profiler
from lighten.runtime.native.program import Conv, Elements, Program
from lighten.runtime.native.program import Tensor as Sizes
from lighten.runtime.profile import profile
from tests.runtime.native.guarded import random
from tests.tiny import TinyNet

LAYERS = ["conv1", "conv2", "fc"]
X = random(0, 3, 1, 8, 8)


class Counted(nn.Module):
    """TinyNet, and a recurrent layer that the engine leaves to ONNX Runtime."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.rows = nn.Linear(64, 1024), nn.LSTM(64, 16, batch_first=True)
        self.last = nn.Linear(256, 4096)

    def forward(self, x: Tensor) -> Tensor:
        wide = torch.relu(self.first(x.flatten(1))).view(-1, 16, 64)
        out: Tensor = self.last(self.rows(wide)[0].flatten(1))
        return out


def exported(model: nn.Module, folder: Path, x: Tensor = X) -> Path:
    return lighten.export(model.eval(), (x[:2],), folder, runtime="native").path


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_every_layer_has_a_share_of_the_whole(n: int, threads: int, tmp_path: Path) -> None:
    artifact, x = read_artifact(exported(TinyNet(), tmp_path / "it")), X[:n].numpy()
    profiler = Profiler()
    engine = compile(artifact, threads, profiler)
    (wanted,) = compile(artifact, threads)([x])
    for _ in range(20):
        profiler.call(lambda: np.testing.assert_array_equal(engine([x])[0], wanted))
    found = profiler.read()
    assert found is not None
    assert [name for name in found.layers if name] == LAYERS
    assert all(found.layers[name] > 0 for name in LAYERS)
    assert sum(found.layers.values()) < 1.2 * found.whole  # medians of each, and of the whole


def told(program: Program, calls: list[list[list[int]]], times: float) -> Profiler:
    """A profiler that engines told these stamps, [calls][operations + 2][parts]; a cycle takes as long as it did."""
    profiler = Profiler()
    for stamps in calls:
        kept = np.array(stamps, np.int64)
        profiler.call(lambda kept=kept: profiler.told(program, kept, times))  # type: ignore[misc]
        assert not kept.any()
    return profiler


def layers_of(profiler: Profiler) -> dict[str, float]:
    found = profiler.read()
    assert found is not None
    return found.layers


def test_an_operation_lasts_until_all_of_its_parts_are_done() -> None:
    conv: Any = Conv(inputs=(0,), weight="w", rows=2, block=1, layer="a")
    double = Elements(inputs=(1, 1), op="add")
    program = Program((Sizes(2, 1, 1),), (conv, double, replace(conv, inputs=(2,), layer="b")), (3,))
    # Part 1 begins first and waits for part 0; the sum's part 0 is done before part 1 of the layer before it.
    one = [[110, 100], [150, 160], [155, 170], [200, 190], [203, 201]]
    later = (np.array(one) + 10**6).tolist()
    spent = layers_of(told(program, [one, later], 2.0))
    assert list(spent) == ["a", "b"]
    assert spent["a"] / spent["b"] == pytest.approx((170 - 100) / (203 - 170))


def test_a_call_whose_share_another_thread_did_tells_nothing() -> None:
    conv: Any = Conv(inputs=(0,), weight="w", rows=2, block=1, layer="a")
    program = Program((Sizes(2, 1, 1),), (conv,), (1,))
    one, none = [[100], [150], [160]], [[0], [0], [0]]
    spent = layers_of(told(program, [one, none, (np.array(one) + 10**6).tolist()], 1.0))
    assert list(spent) == ["a"]
    assert spent["a"] > 0
    alone = [[100, 0], [150, 0], [160, 0]]  # by one thread, which no other part was computed beside
    later = [[stamp + 10**6, 0] for stamp, _ in alone]
    both = layers_of(told(program, [alone, later], 1.0))
    assert both["a"] > 0
    assert told(program, [one, none], 1.0).read() is None  # how long a cycle takes is not known from one


def test_layers_have_their_names_in_an_artifact_however_they_are_compressed(tmp_path: Path) -> None:
    model, inputs = TinyNet().eval(), (X[:2],)
    pruned = prune(model, 0.5, scope="layer", example_inputs=inputs)
    for i, changed in enumerate((capture(model, inputs), pruned, quantize(pruned, "w8", example_inputs=inputs))):
        program, _ = load_program(exported(changed, tmp_path / str(i)))
        assert [op.layer for op in program.ops if isinstance(op, Conv)] == LAYERS


def test_plans_of_before_layers_had_names_are_read(tmp_path: Path) -> None:
    path = exported(TinyNet(), tmp_path / "it")
    plan = json.loads((path / PLAN).read_text())
    for op in plan["ops"]:
        op.pop("layer", None)
    program = Program.from_json(json.dumps(plan))
    assert {op.layer for op in program.ops if isinstance(op, Conv)} == {""}
    assert [replace(op, layer="") if isinstance(op, Conv) else op for op in load_program(path)[0].ops] == [*program.ops]


def test_networks_are_profiled_in_a_process_of_their_own(tmp_path: Path) -> None:
    whole = exported(TinyNet(), tmp_path / "it")
    mixed = exported(Counted(), tmp_path / "mixed")
    assert (mixed / "parts.json").exists()
    shares: list[float] = []
    found = profile({"a": whole, "b": whole, "mixed": mixed}, [X[:1].numpy()], threads=1, on_progress=shares.append)
    assert [*found] == ["a", "b", "mixed"]
    assert shares == [0, 1 / 3, 2 / 3]
    assert [name for name in found["a"].layers if name] == LAYERS
    of_engine = {name for name in found["mixed"].layers if name}
    assert of_engine <= {"first", "last"}
    assert of_engine
    assert sum(found["mixed"].layers.values()) < found["mixed"].whole


def test_other_runtimes_tell_nothing(tmp_path: Path) -> None:
    path = lighten.export(TinyNet().eval(), (X[:2],), tmp_path / "it", runtime="onnxruntime").path
    with pytest.raises(ArtifactError, match=r"is for onnxruntime\. Only the native engine"):
        profile({"it": path}, [X[:1].numpy()], threads=1)
