import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lighten
from lighten.errors import ArtifactError, ConfigError
from lighten.runtime.measure import (
    LatencySample,
    alternate,
    inputs_file,
    mean_ratio_interval,
    measure_latency,
    measure_workers,
    pooled,
    ratio_interval,
)
from lighten.runtime.runner import load
from lighten.runtime.spec import TensorSpec
from lighten.runtime.timed import StartUp, Worker
from lighten.runtime.worker import warm_up
from tests.runtime.models import WEIGHT, write_linear, write_two

X = np.ones((4, 3), "float32")


def sample(rounds: list[float] | np.ndarray) -> LatencySample:
    """rounds: block medians, [rounds] of one process or [processes, rounds]."""
    return LatencySample(blocks_ms=tuple(tuple(np.full(5, value) for value in row) for row in np.atleast_2d(rounds)))


class FakeWorker:
    """Says 1 ms a call, and writes down that it was asked."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    def block(self, min_block_ms: float) -> np.ndarray:
        self.log.append(self.name)
        return np.full(3, min_block_ms)


def test_blocks_alternate_and_every_second_round_runs_backwards() -> None:
    log: list[str] = []
    workers: dict[str, Any] = {name: FakeWorker(name, log) for name in "abc"}
    blocks_ms = alternate(workers, blocks=3, min_block_ms=7.0)
    assert "".join(log) == "abccbaabc"
    assert [len(blocks_ms[name]) for name in "abc"] == [3, 3, 3]
    assert blocks_ms["a"][0].tolist() == [7.0] * 3


def test_quantiles_are_over_all_calls() -> None:
    pooled = LatencySample(blocks_ms=((np.arange(1.0, 52.0),), (np.arange(52.0, 102.0),)))
    assert (pooled.median, pooled.p90, pooled.p99) == (51.0, 91.0, 100.0)
    latency = pooled.to_latency("onnxruntime", threads=2, batch=4)
    assert (latency.median, latency.p90, latency.runtime, latency.threads, latency.batch) == (
        51,
        91,
        "onnxruntime",
        2,
        4,
    )


@settings(deadline=None)
@given(drift=st.lists(st.floats(0.1, 10), min_size=6, max_size=30), factor=st.floats(0.2, 5))
def test_drift_cancels_in_the_ratio(drift: list[float], factor: float) -> None:
    ratio = ratio_interval(sample(np.array(drift) * factor), sample(drift))
    np.testing.assert_allclose([ratio.value, ratio.low, ratio.high], factor, rtol=1e-9)
    assert ratio.is_different == (abs(factor - 1) > 1e-9) or abs(factor - 1) < 1e-6


def test_a_mean_moves_with_the_share_of_a_state_where_a_median_jumps() -> None:
    """a takes 1 ms; b takes 0.5 ms in one state and 1.25 ms in the other."""
    steady = sample(np.ones((4, 5)))
    for n_slow in (9, 11):
        alternating = sample(np.array([1.25] * n_slow + [0.5] * (20 - n_slow)).reshape(4, 5))
        assert alternating.mean == pytest.approx(0.5 + 0.75 * n_slow / 20)
        assert mean_ratio_interval(alternating, steady).value == pytest.approx(0.5 + 0.75 * n_slow / 20)
        assert ratio_interval(alternating, steady).value == (0.5 if n_slow == 9 else 1.25)


def test_the_mean_is_of_medians_so_that_one_interrupted_call_is_nothing() -> None:
    interrupted = LatencySample(blocks_ms=((np.array([1.0, 50.0, 1.0]), np.array([2.0, 2.0, 2.0])),))
    assert interrupted.mean == 1.5


def test_the_interval_of_a_mean_covers_the_truth_nearly_as_often_as_it_says() -> None:
    rng, hits = np.random.default_rng(0), 0
    for trial in range(200):
        noise = np.exp(rng.normal(0, 0.03, (6, 1)) + rng.normal(0, 0.03, (6, 5)))
        ratio = mean_ratio_interval(sample(1.3 * noise), sample(np.ones(noise.shape)), seed=trial)
        hits += ratio.low <= 1.3 * np.exp(0.03**2) <= ratio.high
    assert hits >= 168  # 88 % of 400 such trials, with a standard deviation of 2.3 % in 200
    assert mean_ratio_interval(sample([2.0] * 5), sample([1.0] * 5)).high == float("inf")


def test_pooled_samples_are_one_of_all_processes() -> None:
    first = replace(sample([[1.0, 1.0]]), start_up=StartUp(1, 1, 1, 1), peak_bytes=7, energy_mj=2.0, outputs=(X,))
    second = replace(sample([[2.0, 2.0], [3.0, 3.0]]), start_up=StartUp(3, 3, 3, 3), peak_bytes=5)
    both = pooled([first, second])
    assert [[block[0] for block in rounds] for rounds in both.blocks_ms] == [[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]
    assert (both.start_up, both.peak_bytes, both.energy_mj) == (StartUp(2, 2, 2, 2), 7, 2.0)
    assert both.outputs[0] is X
    assert pooled([second]).energy_mj is None


def test_noise_that_hides_a_difference_is_not_called_one() -> None:
    ratio = ratio_interval(sample([1.0, 2.0] * 10), sample([2.0, 1.0] * 10))
    assert ratio.low <= 1 <= ratio.high
    assert not ratio.is_different


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        noise = np.exp(rng.normal(0, 0.05, 20))
        ratio = ratio_interval(sample(1.3 * noise), sample(np.ones(20)), seed=trial)
        hits += ratio.low <= 1.3 <= ratio.high
    assert hits >= 180  # 95 % of 200 is 190, with a standard deviation of 3


def test_luck_of_a_process_is_part_of_the_interval() -> None:
    """Five processes, quiet within themselves and 20 % apart: pooled rounds would claim far too much."""
    by_process = np.array([0.8, 0.9, 1.0, 1.1, 1.2])[:, None] * np.ones((5, 8))
    ratio = ratio_interval(sample(by_process), sample(np.ones((5, 8))))
    assert (ratio.value, ratio.is_different) == (1.0, False)
    assert ratio.low <= 0.85
    assert ratio.high >= 1.15


@pytest.mark.parametrize(("n_processes", "at_least", "at_most"), [(6, 0.88, 1.0), (1, 0.0, 0.6)])
def test_processes_are_what_makes_the_interval_honest(n_processes: int, at_least: float, at_most: float) -> None:
    """Process effects as large as the noise of a round: six processes nearly keep the 95 %, one cannot."""
    rng, hits = np.random.default_rng(0), 0
    for trial in range(200):
        luck = rng.normal(0, 0.03, (n_processes, 1))
        noise = rng.normal(0, 0.03, (n_processes, 30 // n_processes))
        ratio = ratio_interval(sample(1.3 * np.exp(luck + noise)), sample(np.ones(noise.shape)), seed=trial)
        hits += ratio.low <= 1.3 <= ratio.high
    assert at_least <= hits / 200 <= at_most


def test_a_few_rounds_promise_nothing() -> None:
    ratio = ratio_interval(sample([2.0] * 5), sample([1.0] * 5))
    assert (ratio.value, ratio.low, ratio.high, ratio.is_different) == (2.0, 0.0, float("inf"), False)


def test_two_artifacts_are_timed_side_by_side(tmp_path: Path) -> None:
    write_linear(tmp_path / "a")
    write_linear(tmp_path / "b", np.ones((3, 2), "float32"))
    samples = measure_latency(
        {"a": tmp_path / "a", "b": tmp_path / "b"}, {"x": X}, threads=1, processes=2, blocks=3, min_block_ms=1
    )
    for found in samples.values():
        assert [len(rounds) for rounds in found.blocks_ms] == [3, 3]
        assert all(len(block) >= 3 for rounds in found.blocks_ms for block in rounds)
        assert 0 < found.median <= found.p90 <= found.p99
        assert len(found.outputs) == 1
        assert 0 < found.start_up.load_ms < found.start_up.cold_start_ms
        assert 2**20 < found.peak_bytes < 2**31
    assert ratio_interval(samples["a"], samples["b"]).value > 0
    np.testing.assert_array_equal(samples["a"].outputs[0], X @ WEIGHT)


def test_inputs_in_order_and_threads_by_name(tmp_path: Path) -> None:
    write_two(tmp_path / "two")
    measure_latency({"two": tmp_path / "two"}, [X, X], threads={"two": 2}, processes=1, blocks=1, min_block_ms=1)


@pytest.mark.parametrize("settings", [{"blocks": 0}, {"min_block_ms": 0}, {"processes": 0}])
def test_nothing_to_time_is_refused(tmp_path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        measure_latency({"a": tmp_path}, [X], threads=1, **settings)


def test_a_worker_passes_on_why_it_cannot(tmp_path: Path) -> None:
    write_linear(tmp_path / "a")
    with pytest.raises(ArtifactError, match="Cannot run 'a': Input 'x' is float64"):
        measure_latency({"a": tmp_path / "a"}, [X.astype("float64")], threads=1)
    with pytest.raises(ArtifactError, match="is not an artifact"):
        measure_latency({"a": tmp_path}, [X], threads=1)


def test_a_model_that_fails_says_why_in_a_line(tmp_path: Path) -> None:
    write_linear(tmp_path / "a", inputs=[TensorSpec("x", "float32", ("batch", 4))])  # the model takes 3
    with pytest.raises(ArtifactError, match=r"Cannot run 'a': .*invalid dimensions"):
        measure_latency({"a": tmp_path / "a"}, [np.ones((1, 4), "float32")], threads=1)


def test_a_worker_that_dies_leaves_its_last_words(tmp_path: Path) -> None:
    write_linear(tmp_path / "a")
    inputs = tmp_path / "inputs.safetensors"
    inputs.write_bytes(b"not safetensors")
    with pytest.raises(ArtifactError, match=r"(?s)runs 'a' ended with code 1.*SafetensorError"):
        Worker("a", tmp_path / "a", inputs, 1)


def test_a_killed_worker_is_noticed(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    write_linear(tmp_path / "a")
    save_file({"x": X}, tmp_path / "inputs")
    with Worker("a", tmp_path / "a", tmp_path / "inputs", 1) as worker:
        os.kill(worker.process.pid, signal.SIGKILL)
        with pytest.raises(ArtifactError, match="ended with code -9"):
            worker.block(1.0)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal")
def test_a_stopped_worker_ends_with_its_parent(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    write_linear(tmp_path / "a")
    save_file({"x": X}, tmp_path / "inputs")
    script = (
        "import os, pathlib, signal, sys\n"
        "from lighten.runtime.timed import Worker\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "worker = Worker('a', folder / 'a', folder / 'inputs', 1)\n"
        "print(worker.process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    status = Path(f"/proc/{int(done.stdout)}/status")
    deadline = time.monotonic() + 5
    while status.exists() and "(zombie)" not in status.read_text() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not status.exists() or "(zombie)" in status.read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_an_idle_worker_burns_no_time(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    def cpu_ticks(pid: int) -> int:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    write_linear(tmp_path / "a")
    save_file({"x": X}, tmp_path / "inputs")
    with Worker("a", tmp_path / "a", tmp_path / "inputs", 2) as worker:
        worker.block(5.0)
        before = cpu_ticks(worker.process.pid)
        time.sleep(0.1)
        assert cpu_ticks(worker.process.pid) <= before + 1  # the signal may arrive within the tick
    assert worker.process.returncode is not None


def test_warm_up_ends_when_stable_and_at_its_limit() -> None:
    calls: list[int] = []
    warm_up(lambda: calls.append(1) or time.sleep(0.002), limit_seconds=0.0)
    assert not calls
    warm_up(lambda: calls.append(1) or time.sleep(0.002))
    assert len(calls) >= 9  # three windows of three


def test_a_worker_needs_no_torch(tmp_path: Path) -> None:
    write_linear(tmp_path / "a")
    script = (
        "import sys, numpy as np\n"
        "from lighten.runtime import measure, runner, worker\n"
        f"runner.load({str(tmp_path / 'a')!r})(np.ones((1, 3), 'float32'))\n"
        "assert not {'torch', 'onnx', 'scipy', 'openvino'} & set(sys.modules), sorted(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_scalars_stay_scalars(tmp_path: Path) -> None:
    write_two(tmp_path / "two", shape=())
    a, b = np.float32(3), np.float32(2)
    found = measure_latency({"two": tmp_path / "two"}, [np.asarray(a), np.asarray(b)], threads=1, processes=1, blocks=1)
    assert [output.item() for output in found["two"].outputs] == [5.0, 1.0]
    assert [output.item() for output in load(tmp_path / "two")(a, b)] == [5.0, 1.0]


def test_a_contender_may_be_any_module_and_interpreter(tmp_path: Path) -> None:
    (tmp_path / "peer.py").write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "from safetensors.numpy import load_file, save_file\n"
        "from lighten.runtime.worker import serve\n"
        "def load(job):\n"
        "    doubled = 2 * load_file(job['inputs'])['#0']\n"
        "    save_file({'#0': doubled}, job['outputs'])\n"
        "    return lambda: doubled + 1, {'import_ms': 1.0, 'load_ms': 2.0, 'first_call_ms': 3.0}\n"
        "serve(load)\n"
    )
    path = os.pathsep.join([str(tmp_path), str(Path(lighten.__file__).parents[1])])
    how: dict[str, Any] = {"module": "peer", "python": sys.executable, "environment": {"PYTHONPATH": path}}
    with inputs_file([X]) as inputs:
        start = {"peer": partial(Worker, "peer", tmp_path, inputs, 1, **how)}
        (sample,) = measure_workers(start, processes=2, blocks=2, min_block_ms=1.0).values()
    np.testing.assert_array_equal(sample.outputs[0], 2 * X)
    assert sample.start_up[1:] == (1.0, 2.0, 3.0)
    assert [len(rounds) for rounds in sample.blocks_ms] == [2, 2]
