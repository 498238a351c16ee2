"""Cluster: the jobs of a search as tasks on a Ray cluster that is there already; latency on nodes with a label.

Nodes need lighten installed and no files in common: the task goes into Ray's object store once, what a job writes comes
back packed. A label is a custom resource (`ray start --resources='{"NAME": 1}'`), which a timing takes whole, so that
there is one at a time. Ray does not try a lost task again by itself: the search keeps account of what was lost.
Source: Moritz et al., "Ray: A Distributed Framework for Emerging AI Applications", arXiv:1712.05889.
"""

import contextlib
import io
import logging
import pickle
import socket
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from pathlib import Path
from typing import Any, TypeVar

import torch

from lighten.errors import ArtifactError, ConfigError, require
from lighten.runtime.folder import write_folder
from lighten.runtime.measure import LatencySample, measure_latency
from lighten.runtime.native.profiler import LayerTimes
from lighten.runtime.profile import profile
from lighten.runtime.spec import Array
from lighten.search.pool import pickled
from lighten.search.workers import RETRIES, WAIT_S, Tell, WorkerLost, Workers, quiet
from lighten.task import Task

ANSWER_S = 5.0
ENDING_S = 10.0
OWN = ("CPU", "GPU", "memory", "object_store_memory")  # resources that Ray names itself, besides those with a colon
T = TypeVar("T")


class Cluster(Workers):
    """Tasks on the cluster at address: n at once, None = as many as there are nodes with a core.

    A task takes its share of the cores, no more than the smallest node has. target: the label of the nodes that time;
    None = this machine.

    Raises:
        MissingExtraError: Ray is not installed. ConfigError: no cluster answers at address, it has no cores, or no node
        has the label. TaskError: the task cannot be pickled.
    """

    def __init__(self, task: Task, address: str, n: int | None = None, target: str | None = None) -> None:
        super().__init__(task)
        self._ray = require("ray", "ray")
        packed = pickled(task)
        self._is_ours = not self._ray.is_initialized()
        if self._is_ours:
            self._connect(address)
        cores = [int(node.get("CPU", 0)) for node in self._nodes() if node.get("CPU", 0) >= 1]
        if not cores:
            self.close()
            raise ConfigError(f"The cluster at {address} has no node with a core to train on. Add one: ray start.")
        self._target = target
        if target is not None and not self._can_time():
            labels = {name for node in self._nodes() for name in node if name not in OWN and ":" not in name}
            self.close()
            raise ConfigError(
                f"No node of the cluster at {address} has the label {target}; there are {sorted(labels) or 'none'}. "
                f"Start one with: ray start --address={address} --resources='{{\"{target}\": 1}}'."
            )
        self.n = len(cores) if n is None else n
        self._cores = max(1, min(min(cores), sum(cores) // self.n))
        self._task = self._ray.put(packed)
        self._tasks: dict[Future[Any], Any] = {}

    def submit(self, job: Callable[..., Any], *args: Any, into: Path | None = None, tell: Tell = quiet) -> Future[Any]:
        """See Workers; tell is not called."""
        far = self._ray.remote(_far).options(num_cpus=self._cores, max_retries=0)
        ref = far.remote(self._task, job, args, into is not None, self._cores)
        future: Future[Any] = Future()
        self._tasks[future] = ref

        def finished(of: "Future[Any]") -> None:
            try:
                value, files = of.result()
                if into is not None:
                    _unpack(files, into)
            except Exception as error:  # noqa: BLE001  the future raises it
                future.set_exception(self._meant(error))
            else:
                future.set_result(value)

        ref.future().add_done_callback(finished)
        future.add_done_callback(lambda _: self._tasks.pop(future, None))
        return future

    def cancel(self, future: "Future[Any]") -> None:
        """Kill its process, and wait for that a while."""
        ref = self._tasks.get(future)
        if ref is not None:
            self._ray.cancel(ref, force=True)
            wait_for([future], ENDING_S)

    def at_target(self, function: Callable[..., T], *args: Any, tell: Tell | None = None) -> T:
        """See Workers. Lost with its node, it is done again on another one with the label.

        Raises:
            ArtifactError: no node has the label any more.
        """
        if self._target is None:
            return super().at_target(function, *args, tell=tell)
        far = self._ray.remote(_there).options(num_cpus=0, resources={self._target: 1}, max_retries=RETRIES)
        ref = far.remote(function, args)
        try:
            while not self._ray.wait([ref], timeout=WAIT_S)[0]:
                if tell is not None:
                    tell(0.0, f"timing on {self._target}")
                if not self._can_time():
                    raise ArtifactError(f"The cluster has lost its last node with the label {self._target}.")
            found: T = self._ray.get(ref)
        except self._ray.exceptions.RayError as error:
            raise self._meant(error) from error
        except BaseException:
            self._ray.cancel(ref, force=True)
            raise
        return found

    def latency(
        self, artifacts: Mapping[str, Path], inputs: Mapping[str, Array], *, threads: int, processes: int = 5
    ) -> dict[str, LatencySample]:
        """See Workers."""
        if self._target is None:
            return super().latency(artifacts, inputs, threads=threads, processes=processes)
        how = {"threads": threads, "processes": processes}
        return self.at_target(_with_files, measure_latency, _files_of(artifacts), dict(inputs), how)

    def profile(
        self, artifacts: Mapping[str, Path], inputs: Mapping[str, Array], *, threads: int
    ) -> dict[str, LayerTimes]:
        """See Workers."""
        if self._target is None:
            return super().profile(artifacts, inputs, threads=threads)
        return self.at_target(_with_files, profile, _files_of(artifacts), dict(inputs), {"threads": threads})

    def close(self) -> None:
        """End every job, and leave the cluster."""
        for future in list(getattr(self, "_tasks", {})):
            self.cancel(future)
        if self._is_ours:
            self._ray.shutdown()

    def _connect(self, address: str) -> None:
        host, _, port = address.removeprefix("ray://").rpartition(":")
        try:
            if port.isdecimal():  # Ray itself waits for minutes, then ends the process
                socket.create_connection((host.strip("[]"), int(port)), ANSWER_S).close()
            elif address != "auto":
                raise ConfigError(
                    f"'{address}' is no address of a Ray cluster. It is HOST:PORT, ray://HOST:PORT or auto."
                )
            self._ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"No Ray cluster answers at {address}: {error}. Start one with `ray start --head`, and give the "
                "address that it prints."
            ) from error

    def _nodes(self) -> list[dict[str, float]]:
        """The resources of the nodes that live."""
        return [node["Resources"] for node in self._ray.nodes() if node["Alive"]]

    def _can_time(self) -> bool:
        return any(node.get(self._target or "", 0) >= 1 for node in self._nodes())

    def _meant(self, error: Exception) -> Exception:
        """What the job raised; any other of Ray's errors is of the cluster."""
        if isinstance(error, self._ray.exceptions.RayTaskError):
            cause = getattr(error, "cause", None)
            return cause if isinstance(cause, Exception) else error
        if isinstance(error, self._ray.exceptions.RayError):
            return WorkerLost(f"{type(error).__name__}: {' '.join(str(error).split())}")
        return error


def _far(task: bytes, job: Callable[..., Any], args: tuple[Any, ...], writes: bool, cores: int) -> tuple[Any, bytes]:
    """On a node: what the job returns, and its folder packed."""
    torch.set_num_threads(cores)
    with tempfile.TemporaryDirectory(prefix="lighten-") as scratch:
        folder = Path(scratch) / "folder"
        value = job(pickle.loads(task), *args, tell=quiet, **({"folder": folder} if writes else {}))
        return value, _packed(folder) if writes else b""


def _there(function: Callable[..., T], args: tuple[Any, ...]) -> T:
    return function(*args)


def _with_files(
    measure: Callable[..., T], artifacts: Mapping[str, bytes], inputs: Mapping[str, Array], how: Mapping[str, Any]
) -> T:
    """What measure finds of artifacts that come packed."""
    with tempfile.TemporaryDirectory(prefix="lighten-") as scratch:
        paths = {name: Path(scratch) / str(i) for i, name in enumerate(artifacts)}
        for name, path in paths.items():
            _unpack(artifacts[name], path)
        return measure(paths, inputs, **how)


def _files_of(artifacts: Mapping[str, Path]) -> dict[str, bytes]:
    return {name: _packed(path) for name, path in artifacts.items()}


def _packed(folder: Path) -> bytes:
    into = io.BytesIO()
    with tarfile.open(fileobj=into, mode="w") as tar:
        tar.add(folder, ".")
    return into.getvalue()


def _unpack(files: bytes, folder: Path) -> None:
    """Write what was packed to folder, all or nothing."""

    def fill(to: Path) -> None:
        with contextlib.closing(tarfile.open(fileobj=io.BytesIO(files))) as tar:
            tar.extractall(to, filter="data")

    write_folder(folder, fill, lambda old: None)
