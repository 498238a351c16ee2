"""What every runtime has to do alike, and what is special in one."""

import importlib.util
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch import fx, nn

from lighten.errors import ArtifactError, ConfigError, MissingExtraError
from lighten.runtime.artifact import Artifact
from lighten.runtime.backends import BACKENDS, backend
from lighten.runtime.measure import measure_latency
from lighten.runtime.native.packed import pack
from lighten.runtime.native.program import Conv, Elements, Program, Tensor
from lighten.runtime.runner import load
from lighten.runtime.spec import TensorSpec
from lighten.runtime.torch_graph import save_graph
from tests.runtime.models import WEIGHT, write_linear, write_two

X = np.arange(6, dtype="float32").reshape(2, 3)
NAMES = [
    "onnxruntime",
    pytest.param("openvino", marks=pytest.mark.skipif(not importlib.util.find_spec("openvino"), reason="no openvino")),
    "torch",
    pytest.param("native", marks=pytest.mark.skipif(not importlib.util.find_spec("llvmlite"), reason="no llvmlite")),
]


def matmul() -> fx.GraphModule:
    root, graph = nn.Module(), fx.Graph()
    root.register_buffer("weight", torch.from_numpy(WEIGHT))
    graph.output(graph.call_function(torch.ops.aten.mm.default, (graph.placeholder("x"), graph.get_attr("weight"))))
    return fx.GraphModule(root, graph)


def two() -> fx.GraphModule:
    graph = fx.Graph()
    a, b = graph.placeholder("a"), graph.placeholder("b")
    functions = (torch.ops.aten.add.Tensor, torch.ops.aten.sub.Tensor)
    graph.output(tuple(graph.call_function(function, (a, b)) for function in functions))
    return fx.GraphModule(nn.Module(), graph)


def save_program(program: Program, to: Path) -> None:
    (to / "plan.json").write_text(program.to_json())
    save_file(pack(np.ascontiguousarray(WEIGHT.T), None, 1).to_arrays("w", len(WEIGHT)), to / "weights.safetensors")


def write_for(name: str, folder: Path, **changes: Any) -> Artifact:
    linear = Program((Tensor(3, 1, 1),), (Conv(inputs=(0,), weight="w", rows=2, block=1),), (1,))
    writers = {"torch": lambda to: save_graph(matmul(), to), "native": lambda to: save_program(linear, to)}
    files = {"write_files": writers[name]} if name in writers else {}
    return write_linear(folder, **{"runtime": name, **files, **changes})


@pytest.mark.parametrize("name", NAMES)
def test_outputs_any_batch_size_and_threads(tmp_path: Path, name: str) -> None:
    write_for(name, tmp_path / "out")
    runner = load(tmp_path / "out", threads=2)
    for n in (0, 1, 5, 300):
        x = np.ones((n, 3), "float32")
        np.testing.assert_allclose(runner(x), x @ WEIGHT, rtol=1e-6)
    assert isinstance(runner(torch.from_numpy(X)), torch.Tensor)


@pytest.mark.parametrize("name", NAMES)
def test_several_inputs_and_outputs_keep_their_order(tmp_path: Path, name: str) -> None:
    ops = tuple(Elements(inputs=(0, 1), op=op) for op in ("add", "sub"))
    pair = Program((Tensor(3, 1, 1),) * 2, ops, (2, 3))
    writers = {"torch": lambda to: save_graph(two(), to), "native": lambda to: save_program(pair, to)}
    files = {"write_files": writers[name]} if name in writers else {}
    write_two(tmp_path / "out", runtime=name, **files)
    total, difference = load(tmp_path / "out")({"b": X * 3, "a": X})
    np.testing.assert_array_equal(total, X * 4)
    np.testing.assert_array_equal(difference, X * -2)


@pytest.mark.parametrize("name", NAMES)
def test_64_threads_share_one_runner(tmp_path: Path, name: str) -> None:
    write_for(name, tmp_path / "out")
    runner = load(tmp_path / "out")

    def work(seed: int) -> bool:
        rng = np.random.default_rng(seed)
        inputs = [rng.integers(-9, 9, (1 + i % 5, 3)).astype("float32") for i in range(30)]
        return all(np.array_equal(runner(x), x @ WEIGHT) for x in inputs)

    with ThreadPoolExecutor(64) as pool:
        assert all(pool.map(work, range(64)))


@pytest.mark.parametrize("name", NAMES)
def test_an_output_is_the_callers_own(tmp_path: Path, name: str) -> None:
    write_for(name, tmp_path / "out")
    runner = load(tmp_path / "out")
    first = runner(X)
    kept = first.copy()
    runner(X * 2)
    np.testing.assert_array_equal(first, kept)
    x = X.copy()
    x.flags.writeable = False
    first *= 0
    np.testing.assert_array_equal(runner(x), kept)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "changes",
    [
        {"options": {"plugin": "x.so"}},
        {"options": {"threads": 1.5}},
        {"write_files": lambda to: (to / "model.onnx").write_bytes(b"no model")},
        {"inputs": []},
        {"outputs": [TensorSpec("y", "float32", ("batch", 2)), TensorSpec("z", "float32", ())]},
    ],
    ids=["option", "threads", "file", "inputs", "outputs"],
)
def test_what_cannot_run_is_refused(tmp_path: Path, name: str, changes: dict[str, Any]) -> None:
    write_for(name, tmp_path / "out", **changes)
    with pytest.raises((ArtifactError, ConfigError), match=r"out|threads"):
        load(tmp_path / "out")


@pytest.mark.parametrize("name", NAMES)
def test_a_worker_times_it(tmp_path: Path, name: str) -> None:
    write_for(name, tmp_path / "out")
    found = measure_latency({"it": tmp_path / "out"}, [X], threads=1, processes=1, blocks=1, min_block_ms=1)
    assert found["it"].median > 0


@pytest.mark.parametrize("name", NAMES)
def test_the_callers_arithmetic_stays_as_it_was(tmp_path: Path, name: str) -> None:
    write_for(name, tmp_path / "out")
    load(tmp_path / "out")(X)
    assert (np.array([1e-40], "float32") * np.array([0.5], "float32"))[0] > 0  # denormals, too


@pytest.mark.parametrize("name", NAMES)
def test_it_describes_itself(name: str) -> None:
    found = backend(name).describe()
    assert found.name == name
    assert found.version[0].isdigit()
    assert found.devices


def test_every_runtime_is_tested_here() -> None:
    assert list(BACKENDS) == [getattr(name, "values", [name])[0] for name in NAMES]
    with pytest.raises(ConfigError, match="no runtime 'abacus'"):
        backend("abacus")


def test_a_missing_extra_names_itself() -> None:
    script = (
        "import sys; sys.modules['openvino'] = None\n"
        "from lighten.runtime.backends import backend\n"
        "from lighten.errors import MissingExtraError\n"
        "try: backend('openvino').describe()\n"
        "except MissingExtraError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert "pip install 'lighten[openvino]'" in done.stdout
    assert MissingExtraError.__name__


@pytest.mark.parametrize("name", ["onnxruntime", NAMES[1]])
@pytest.mark.parametrize("location", ["../secret.bin", "{outside}/secret.bin", "sub/../../secret.bin"])
def test_a_model_cannot_read_weights_outside_its_folder(tmp_path: Path, name: str, location: str) -> None:
    import onnx

    WEIGHT.tofile(tmp_path / "secret.bin")

    def write_files(to: Path) -> None:
        write_linear(tmp_path / "honest")
        model = onnx.load(tmp_path / "honest" / "model.onnx")
        (weight,) = model.graph.initializer
        weight.ClearField("raw_data")
        weight.data_location = onnx.TensorProto.EXTERNAL
        for key, value in {"location": location.format(outside=tmp_path), "offset": "0", "length": "24"}.items():
            entry = weight.external_data.add()
            entry.key, entry.value = key, value
        (to / "model.onnx").write_bytes(model.SerializeToString())

    write_linear(tmp_path / "out", runtime=name, write_files=write_files)
    with pytest.raises(ArtifactError, match="cannot load"):
        load(tmp_path / "out")


@pytest.mark.parametrize(("mode", "layout"), [("eager", "channels_last"), ("trace", "contiguous"), ("eager", "rows")])
def test_torch_knows_its_options(tmp_path: Path, mode: str, layout: str) -> None:
    write_for("torch", tmp_path / "out", options={"mode": mode, "layout": layout})
    if (mode, layout) == ("eager", "channels_last"):
        np.testing.assert_array_equal(load(tmp_path / "out")(X), X @ WEIGHT)
    else:
        with pytest.raises(ArtifactError, match="Known: "):
            load(tmp_path / "out")


def test_torch_puts_the_thread_setting_back(tmp_path: Path) -> None:
    write_for("torch", tmp_path / "out")
    before = torch.get_num_threads()
    load(tmp_path / "out", threads=before + 1)(X)
    assert torch.get_num_threads() == before


def test_torch_never_lends_a_weight(tmp_path: Path) -> None:
    root, graph = nn.Module(), fx.Graph()
    root.register_buffer("weight", torch.from_numpy(WEIGHT))
    x = graph.placeholder("x")
    graph.output((graph.get_attr("weight"), graph.call_function(torch.ops.aten.view.default, (x, [-1]))))
    outputs = [TensorSpec("w", "float32", (3, 2)), TensorSpec("flat", "float32", ("n",))]
    module = fx.GraphModule(root, graph)
    write_for("torch", tmp_path / "out", outputs=outputs, write_files=lambda to: save_graph(module, to))
    runner, given = load(tmp_path / "out"), X.copy()
    for output in runner(given):
        output *= 0
    np.testing.assert_array_equal(given, X)
    np.testing.assert_array_equal(runner(given)[0], WEIGHT)


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="torch.compile needs a C++ compiler")
def test_torch_compiles(tmp_path: Path) -> None:
    write_for("torch", tmp_path / "out", options={"mode": "compile"})
    runner = load(tmp_path / "out", threads=1)
    for n in (2, 3, 4):
        x = np.ones((n, 3), "float32")
        np.testing.assert_allclose(runner(x), x @ WEIGHT, rtol=1e-6)
