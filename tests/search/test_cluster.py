"""Jobs on a Ray cluster of several nodes on this machine."""

import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

import lighten
from lighten.errors import ConfigError, MissingExtraError
from lighten.runtime.cpu import usable_cores
from lighten.search.cluster import Cluster
from lighten.search.workers import WorkerLost, Workers
from tests.search import jobs
from tests.search.shuffled import found_by
from tests.tiny import tiny_task

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray: pip install 'lighten[ray]'")
NODE = {"node_ip_address": "127.0.0.1", "include_dashboard": False, "object_store_memory": 100_000_000}


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """A head without a core, and two nodes of one core each; one of them has the label `target`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # or Ray puts an outer address in place of 127.0.0.1
        from ray.cluster_utils import Cluster as Nodes

        made = Nodes(initialize_head=True, head_node_args={**NODE, "num_cpus": 0})
        try:
            made.add_node(**NODE, num_cpus=1, resources={"target": 1})
            made.add_node(**NODE, num_cpus=1)
            yield made
        finally:
            made.shutdown()


@needs_ray
def test_jobs_are_tasks_and_what_they_write_comes_back(nodes: Any, tmp_path: Path) -> None:
    with Cluster(tiny_task(), nodes.address) as cluster:
        assert cluster.n == 2
        found = cluster.all_done([(jobs.about, 1), (jobs.about, 2)], "telling")
        assert [(name, number, threads) for name, number, _, threads in found] == [("tiny", 1, 1), ("tiny", 2, 1)]
        cluster.submit(jobs.writes, "hello", into=tmp_path / "folder").result()
        assert (tmp_path / "folder" / "text").read_text() == "hello"
        with pytest.raises(ConfigError, match="tiny is refused"):
            cluster.submit(jobs.refuses).result()
        assert cluster.all_done([(jobs.dies, 1, tmp_path / "count")], "dying") == ["done"]
        (loss,) = cluster.lost
        assert (loss["at"], loss["retried"]) == ("dying", True)
        future = cluster.submit(jobs.sleeps, tmp_path / "begun")
        while not (tmp_path / "begun").exists():
            time.sleep(0.05)
        began = time.monotonic()
        cluster.cancel(future)
        assert isinstance(future.exception(timeout=20), WorkerLost)
        assert time.monotonic() - began < 20


@needs_ray
def test_an_address_or_a_label_that_is_not_there_is_said(nodes: Any) -> None:
    with pytest.raises(ConfigError, match=r"No Ray cluster answers at 127.0.0.1:9: .*ray start --head"):
        Cluster(tiny_task(), "127.0.0.1:9")
    with pytest.raises(ConfigError, match="'somewhere' is no address"):
        Cluster(tiny_task(), "somewhere")
    with pytest.raises(ConfigError, match=r"has the label pi; there are \['target'\]"):
        Cluster(tiny_task(), nodes.address, target="pi")


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'lighten\[ray\]'"):
        Cluster(tiny_task(), "127.0.0.1:6379")


@needs_ray
def test_latency_is_of_the_node_with_the_label(nodes: Any, tmp_path: Path) -> None:
    artifact = lighten.export(tiny_task().model, tiny_task().example_inputs, tmp_path / "it").path
    inputs = {spec.name: torch.zeros(1, 1, 8, 8).numpy() for spec in lighten.load(artifact).artifact.inputs}
    with Cluster(tiny_task(), nodes.address, target="target") as cluster:
        import ray

        labelled = next(n["NodeID"] for n in ray.nodes() if n["Alive"] and "target" in n["Resources"])
        assert cluster.at_target(jobs.node) == labelled
        assert cluster.at_target(usable_cores) == usable_cores()
        sample = cluster.latency({"it": artifact}, inputs, threads=1, processes=1)["it"]
        assert 0 < sample.median < 1000
        native = lighten.export(
            tiny_task().model, tiny_task().example_inputs, tmp_path / "native", runtime="native"
        ).path
        times = cluster.profile({"it": native}, inputs, threads=1)["it"]
        assert 0 < sum(times.layers.values()) < 1000


@needs_ray
def test_a_node_killed_in_the_middle_of_a_trial_costs_that_trial_only(nodes: Any, tmp_path: Path) -> None:
    """The search ends as it does undisturbed; the trial is made again elsewhere."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as a task has
    alone = found_by(Workers(tiny_task()), tmp_path / "one", 15)
    torch.set_num_threads(before)
    doomed = nodes.list_all_nodes()[-1]

    def kill_when_busy() -> None:
        checkpoints = tmp_path / "two" / "checkpoints"
        while len(list(checkpoints.glob("*/*"))) < 2:  # both nodes have trained an epoch
            time.sleep(0.02)
        nodes.remove_node(doomed, allow_graceful=False)

    killer = threading.Thread(target=kill_when_busy, daemon=True)
    killer.start()
    with Cluster(tiny_task(), nodes.address) as cluster:
        assert found_by(cluster, tmp_path / "two", 15) == alone
        assert [loss["retried"] for loss in cluster.lost] == [True]
    killer.join(timeout=60)
    assert not killer.is_alive()
