from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lighten.errors import ArtifactError, ConfigError
from lighten.runtime.runner import Runner, load
from lighten.runtime.spec import TensorSpec, check_arrays
from tests.runtime.models import IN, WEIGHT, write_linear, write_two

X = np.arange(6, dtype="float32").reshape(2, 3)


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    write_linear(tmp_path / "one")
    return load(tmp_path / "one")


@pytest.fixture
def two(tmp_path: Path) -> Runner:
    write_two(tmp_path / "two")
    return load(tmp_path / "two")


def test_the_same_kind_comes_back(runner: Runner) -> None:
    output = runner(X)
    assert isinstance(output, np.ndarray)
    np.testing.assert_array_equal(output, X @ WEIGHT)
    tensor = runner(torch.from_numpy(X).requires_grad_())
    assert isinstance(tensor, torch.Tensor)
    assert torch.equal(tensor, torch.from_numpy(X @ WEIGHT))


@pytest.mark.parametrize("n", [0, 1, 7, 1000])
def test_any_batch_size(runner: Runner, n: int) -> None:
    x = np.ones((n, 3), "float32")
    np.testing.assert_array_equal(runner(x), x @ WEIGHT)


def test_inputs_in_order_by_name_and_mixed(two: Runner) -> None:
    a, b = X, X[::-1] * 2  # b is not contiguous
    for outputs in (two(a, b), two((a, b)), two([a, b]), two({"b": b, "a": a}), two(b=b, a=a), two(a, b=b)):
        assert isinstance(outputs, tuple)
        np.testing.assert_array_equal(outputs[0], a + b)
        np.testing.assert_array_equal(outputs[1], a - b)
    assert all(isinstance(output, torch.Tensor) for output in two(torch.from_numpy(a), b))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((X.astype("float64"),), "Input 'x' is float64, but the model takes float32"),
        ((X[0],), r"Input 'x' has 1 axes, \[3\], but the model takes 2: \[batch, 3\]. Add the batch axis"),
        ((X[:, :2],), r"Input 'x' has shape \[2, 2\], but the model takes \[batch, 3\] \(batch = 2\)"),
        ((X, X), "Got 2 inputs, but the model takes 1: x"),
        ((), "takes each of"),
        (({"z": X},), "takes each of"),
        (([[1.0]],), "Input 'x' is a list. Give a NumPy array or a torch tensor"),
        ((torch.ones(1, 3, dtype=torch.bfloat16),), "Input 'x' is bfloat16"),
    ],
)
def test_a_wrong_input_is_named(runner: Runner, inputs: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        runner(*inputs)


def test_an_input_given_twice_is_refused(two: Runner) -> None:
    with pytest.raises(ConfigError, match="each of"):
        two(X, a=X)


def test_a_free_axis_has_one_size_in_a_call(two: Runner) -> None:
    with pytest.raises(ConfigError, match=r"Input 'b' has shape \[1, 3\].*\(batch = 2\)"):
        two(X, X[:1])


def test_a_scalar_input_has_no_axes() -> None:
    assert check_arrays([TensorSpec("t", "int64", ())], [np.asarray(3)]) == {}


@pytest.mark.parametrize(
    "bad", [("", "float32", ()), ("x", "bfloat16", ()), ("x", "float32", (1.5,)), ("x", "int8", (True,))]
)
def test_a_spec_checks_itself(bad: tuple[Any, ...]) -> None:
    with pytest.raises(ConfigError):
        TensorSpec(*bad)
    assert TensorSpec.from_dict(IN.to_dict()) == IN


@pytest.mark.parametrize("threads", [0, -1, 2.0, True, 5000])
def test_threads_is_a_count(tmp_path: Path, threads: Any) -> None:
    write_linear(tmp_path / "out")
    with pytest.raises(ConfigError, match="threads="):
        load(tmp_path / "out", threads=threads)


def test_threads_come_from_the_call_then_the_artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import lighten.runtime.onnxruntime as backend

    seen: list[int] = []
    monkeypatch.setattr(backend, "compile", lambda _, threads: seen.append(threads))
    monkeypatch.setattr("lighten.runtime.backends.usable_cores", lambda: 7)
    write_linear(tmp_path / "out", options={"threads": 3})
    load(tmp_path / "out")
    load(tmp_path / "out", threads=2)
    write_linear(tmp_path / "out", options={})
    load(tmp_path / "out")
    assert seen == [3, 2, 7]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"runtime": "abacus"}, "for the runtime 'abacus'"),
        ({"options": {"threads": "2"}}, "count"),
        ({"options": {"plugin": "x.so"}}, "plugin='x.so'"),
        ({"options": {"provider": "NoSuchProvider"}}, "asks for NoSuchProvider"),
        ({"inputs": [TensorSpec("z", "float32", (3,))]}, "lists the inputs"),
        ({"outputs": []}, "lists the outputs"),
        ({"write_files": lambda to: (to / "model.onnx").write_bytes(b"no model")}, "cannot load"),
        ({"write_files": lambda to: (to / "other.onnx").write_bytes(b"no model")}, "cannot load"),
    ],
    ids=str,
)
def test_an_artifact_that_cannot_run_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write_linear(tmp_path / "out", **changes)
    with pytest.raises((ArtifactError, ConfigError), match=message):
        load(tmp_path / "out")


def test_a_failing_runtime_says_on_what(tmp_path: Path) -> None:
    write_linear(tmp_path / "out", inputs=[TensorSpec("x", "float32", ("batch", 4))])  # the model takes 3
    with pytest.raises(ArtifactError, match=r"failed on inputs of shape \[\[1, 4\]\]"):
        load(tmp_path / "out")(np.ones((1, 4), "float32"))


def test_64_threads_share_one_runner(runner: Runner) -> None:
    def work(seed: int) -> bool:
        rng = np.random.default_rng(seed)
        inputs = [rng.integers(-9, 9, (1 + i % 5, 3)).astype("float32") for i in range(50)]
        return all(np.array_equal(runner(x), x @ WEIGHT) for x in inputs)

    with ThreadPoolExecutor(64) as pool:
        assert all(pool.map(work, range(64)))
