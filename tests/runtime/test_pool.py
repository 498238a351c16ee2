from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lighten.errors import ArtifactError, ConfigError
from lighten.runtime.pool import Pool
from lighten.runtime.shared import SharedArrays
from tests.runtime.models import WEIGHT, write_linear, write_two

X = np.arange(6, dtype="float32").reshape(2, 3)

arrays = hnp.arrays(
    st.sampled_from(["float32", "float64", "int8", "int64", "bool"]),
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5),
)


@settings(deadline=None)
@given(written=st.lists(arrays, max_size=4))
def test_arrays_pass_through_the_memory(tmp_path_factory: pytest.TempPathFactory, written: list[np.ndarray]) -> None:
    path = tmp_path_factory.mktemp("shared") / "memory"
    near = SharedArrays(path, 2**16)
    places = near.put(written)
    far = SharedArrays(path)
    for place, array in zip(places, written, strict=True):
        found = far.view(place)
        assert (found.dtype, found.shape) == (array.dtype, array.shape)
        assert found.tobytes() == array.tobytes()


def test_too_little_room_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="136 bytes do not fit in the 128"):
        SharedArrays(tmp_path / "memory", 128).put([np.zeros(1), np.zeros(16)])


def test_outputs_come_in_order_and_several_inputs_go_in(tmp_path: Path) -> None:
    write_two(tmp_path / "out")
    batches = [(X * i, X) for i in range(40)]
    with Pool(tmp_path / "out", workers=2) as pool:
        for (a, b), (total, difference) in zip(batches, pool.map(batches), strict=True):
            np.testing.assert_array_equal(total, a + b)
            np.testing.assert_array_equal(difference, a - b)
        assert list(pool.map([])) == []


def test_a_pool_is_a_runner(tmp_path: Path) -> None:
    write_linear(tmp_path / "out")
    with Pool(tmp_path / "out", workers=2) as pool:
        first = pool.runner(torch.from_numpy(X))
        assert isinstance(first, torch.Tensor)
        pool.runner(X * 2)
        np.testing.assert_array_equal(first, X @ WEIGHT)  # a copy, not the shared memory
        with pytest.raises(ConfigError, match="Input 'x' is float64"):
            pool.runner(X.astype("float64"))
        with ThreadPoolExecutor(16) as threads:
            for n, found in enumerate(threads.map(pool.runner, [X[:1].repeat(n, 0) for n in range(40)])):
                np.testing.assert_array_equal(found, (X[:1] @ WEIGHT).repeat(n, 0))


def test_a_batch_that_does_not_fit_fails_alone(tmp_path: Path) -> None:
    write_linear(tmp_path / "out")
    with Pool(tmp_path / "out", workers=1, room_bytes=1024) as pool:
        with pytest.raises(ArtifactError, match="do not fit in the 1024"):
            pool.runner(np.ones((1000, 3), "float32"))
        np.testing.assert_array_equal(pool.runner(X), X @ WEIGHT)


def test_a_process_that_dies_is_noticed(tmp_path: Path) -> None:
    write_linear(tmp_path / "out")
    with Pool(tmp_path / "out", workers=1) as pool:
        member = pool._free.get()
        member.process.kill()
        pool._free.put(member)
        with pytest.raises(ArtifactError, match="ended with code -9"):
            pool.runner(X)


def test_what_cannot_start_is_refused_and_leaves_no_process(tmp_path: Path) -> None:
    write_linear(tmp_path / "bad", write_files=lambda to: (to / "model.onnx").write_bytes(b"no model"))
    with pytest.raises(ArtifactError, match="cannot load"):
        Pool(tmp_path / "bad", workers=2)
    with pytest.raises(ConfigError, match="workers=0"):
        Pool(tmp_path / "bad", workers=0)


def test_an_artifact_may_ask_for_its_workers(tmp_path: Path) -> None:
    write_linear(tmp_path / "asks", options={"threads": 2, "workers": 3})
    with Pool(tmp_path / "asks") as pool:
        assert pool.workers == 3
        assert pool.runner(X).shape == (2, 2)
    with Pool(tmp_path / "asks", workers=1) as pool:
        assert pool.workers == 1
    write_linear(tmp_path / "odd", options={"workers": 0})
    with pytest.raises(ConfigError, match="workers=0"):
        Pool(tmp_path / "odd")
