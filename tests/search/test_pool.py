"""Jobs in processes of this machine."""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import lighten
from lighten.errors import ConfigError, TaskError
from lighten.search import pool as pool_module
from lighten.search.config import SearchConfig
from lighten.search.pool import Pool
from lighten.search.space import look_at
from lighten.search.workers import RETRIES, WorkerLost, Workers, quiet
from tests.search import jobs
from tests.search.shuffled import found_by
from tests.tiny import tiny_task


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As many threads in this process as in one of a pool of two: sums in another order are other numbers."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool_module, "usable_cores", lambda: 2)
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    with Pool(tiny_task(), 2) as made:
        yield made


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_a_job_writes_raises_and_loses_comes_back(pool: Pool, tmp_path: Path) -> None:
    written = pool.submit(jobs.writes, "hello", into=tmp_path / "a" / "folder")
    refused = pool.submit(jobs.refuses)
    assert written.result() is None
    assert (tmp_path / "a" / "folder" / "text").read_text() == "hello"
    with pytest.raises(ConfigError, match="tiny is refused") as caught:
        refused.result()
    assert "in refuses" in str(caught.value.__cause__)  # where it was raised


def test_a_killed_process_costs_its_job_only_which_is_tried_again(pool: Pool, tmp_path: Path) -> None:
    died, (name, number, process, threads) = pool.all_done(
        [(jobs.dies, 1, tmp_path / "count"), (jobs.about, 7)], "dying"
    )
    assert (died, name, number, threads) == ("done", "tiny", 7, 1)
    assert process != os.getpid()
    (loss,) = pool.lost
    assert (loss["at"], loss["times"], loss["retried"]) == ("dying", 1, True)
    assert "ended with code -9" in loss["why"]


def test_what_is_lost_every_time_is_given_up(tmp_path: Path) -> None:
    class Lossy(Workers):
        def submit(self, *args: object, **kwargs: object):  # type: ignore[no-untyped-def]
            future = super().submit(jobs.about, 1)
            future._exception = WorkerLost("gone")
            return future

    workers = Lossy(tiny_task())
    with pytest.raises(WorkerLost, match="gone"):
        workers.all_done([(jobs.about, 1)], "it")
    assert [loss["retried"] for loss in workers.lost] == [True] * RETRIES + [False]


def test_a_cancelled_job_ends_at_once(pool: Pool, tmp_path: Path) -> None:
    future = pool.submit(jobs.sleeps, tmp_path / "begun")
    wait_for(tmp_path / "begun")
    (process,) = pool._processes.values()
    pool.cancel(future)
    assert process.process.poll() is not None
    assert isinstance(future.exception(timeout=10), WorkerLost)


def test_a_task_that_cannot_be_pickled_and_a_pool_of_one_are_refused() -> None:
    with pytest.raises(TaskError, match="Task 'tiny' cannot be sent to another process"):
        Pool(tiny_task(loss=threading.Lock()), 2)
    with pytest.raises(ConfigError, match="A pool of 1 is none"):
        Pool(tiny_task(), 1)
    for wrong, message in (({"workers": 0}, "workers=0 is below 1"), ({"target_label": "pi"}, "needs ray=ADDRESS")):
        with pytest.raises(ConfigError, match=message):
            lighten.compress(tiny_task(), max_drop=0.1, out_dir="never", **wrong)  # type: ignore[arg-type]


def test_harms_are_the_same_to_the_bit(pool: Pool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = []
    for workers in (Workers(tiny_task()), pool):
        monkeypatch.setenv("LIGHTEN_CACHE", str(tmp_path / str(workers.n)))
        harms = look_at(workers, SearchConfig(round_to=4), quiet).harms
        found.append({key: values.tolist() for key, values in harms.items()})
    assert found[0] == found[1]
    assert list(found[0]) == list(found[1])


def test_a_search_in_two_processes_finds_what_one_does(pool: Pool, tmp_path: Path) -> None:
    alone = found_by(Workers(tiny_task()), tmp_path / "one", 2)
    assert found_by(pool, tmp_path / "two", 2) == alone


def test_compress_does_trials_in_processes_and_says_so(tmp_path: Path) -> None:
    config = SearchConfig(ratios=(0.5,), schemes=(None,), epochs=2)
    data = lighten.compress(
        tiny_task(), max_drop=0.05, minimize="size", out_dir=tmp_path / "out", threads=1, config=config, workers=2
    ).data
    assert (data["workers"], data["lost_workers"], data["trials"]) == (2, [], 1)
    assert data["accepted"]
