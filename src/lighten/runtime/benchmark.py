"""A benchmark: several artifacts timed side by side, and each compared with one of them."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lighten.errors import ConfigError
from lighten.runtime.artifact import Artifact, read_artifact
from lighten.runtime.cpu import this_cpu, usable_cores
from lighten.runtime.measure import LatencySample, Ratio, measure_latency, ratio_interval
from lighten.runtime.native.profiler import LayerTimes
from lighten.runtime.profile import profile
from lighten.runtime.spec import BATCH, Array, TensorSpec
from lighten.runtime.throughput import Throughput, measure_throughput


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One artifact, the threads it ran on, its sample, and how many times faster than the baseline it is."""

    name: str
    artifact: Artifact
    threads: int
    sample: LatencySample
    speedup: Ratio | None

    @property
    def verdict(self) -> str:
        """ "baseline", "faster", "slower", or "not different" where the interval of the speed-up includes 1."""
        if self.speedup is None:
            return "baseline"
        if not self.speedup.is_different:
            return "not different"
        return "faster" if self.speedup.value > 1 else "slower"

    def to_dict(self) -> dict[str, Any]:
        """Plain data; times in milliseconds a call, energy in millijoules a call."""
        compared = None
        if self.speedup is not None:
            compared = {"value": self.speedup.value, "ci95": _finite([self.speedup.low, self.speedup.high])}
        return {
            "name": self.name,
            "runtime": self.artifact.runtime,
            "options": dict(self.artifact.options),
            "threads": self.threads,
            "median_ms": self.sample.median,
            "p90_ms": self.sample.p90,
            "p99_ms": self.sample.p99,
            "n_calls": len(self.sample.samples_ms),
            "speedup": compared,
            "verdict": self.verdict,
            "start_up": self.sample.start_up._asdict(),
            "peak_bytes": self.sample.peak_bytes,
            "energy_mj": self.sample.energy_mj,
            "size_bytes": self.artifact.size_bytes,
        }


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """entries: the baseline first. load: runnable tasks a core when it began; above 0.5 others were at work too."""

    entries: tuple[Entry, ...]
    batch: int
    load: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "batch": self.batch,
            "entries": [entry.to_dict() for entry in self.entries],
            "environment": {"cpu": asdict(this_cpu()), "load": self.load},
        }


def benchmark(
    folders: Sequence[Path],
    *,
    threads: int | None = None,
    batch: int = 1,
    sizes: Mapping[str, int] | None = None,
    processes: int = 6,
    blocks: int = 5,
    min_block_ms: float = 20.0,
) -> Benchmark:
    """Time the artifacts in folders on made-up inputs; the first is the baseline.

    threads: for all, or None = what each asks for, else every usable core. sizes: of free axes other than the batch.

    Raises:
        ConfigError: an axis has no size, a folder is named twice, or the inputs of two artifacts differ in shape or
        dtype. ArtifactError: from reading or running one.
    """
    names = [str(folder) for folder in folders]
    if len(set(names)) != len(names):
        raise ConfigError(f"An artifact is named twice among {names}. Name each once.")
    artifacts = [read_artifact(Path(folder)) for folder in folders]
    load = _load_per_core()
    free = {BATCH: batch, **(sizes or {})}
    inputs = [made_up(spec, free) for spec in artifacts[0].inputs]
    for artifact in artifacts[1:]:
        _must_take(artifact, artifacts[0], inputs, free)
    chosen = [threads or artifact.options.get("threads") or usable_cores() for artifact in artifacts]
    samples = measure_latency(
        dict(zip(names, folders, strict=True)),
        inputs,
        threads=dict(zip(names, chosen, strict=True)),
        processes=processes,
        blocks=blocks,
        min_block_ms=min_block_ms,
    )
    baseline = samples[names[0]]
    entries = tuple(
        Entry(
            name=name,
            artifact=artifact,
            threads=n_threads,
            sample=samples[name],
            speedup=None if name == names[0] else ratio_interval(baseline, samples[name]),
        )
        for name, artifact, n_threads in zip(names, artifacts, chosen, strict=True)
    )
    return Benchmark(entries=entries, batch=batch, load=load)


def throughputs(
    folders: Sequence[Path], *, batch: int = 1, sizes: Mapping[str, int] | None = None, seconds: float = 2.0
) -> dict[str, list[Throughput]]:
    """Samples a second of each artifact, on made-up inputs, with 1, 2, 4, … processes of one thread.

    Raises:
        ConfigError, ArtifactError: as in benchmark.
    """
    found = {}
    for folder in folders:
        inputs = [made_up(spec, {BATCH: batch, **(sizes or {})}) for spec in read_artifact(Path(folder)).inputs]
        found[str(folder)] = measure_throughput(Path(folder), inputs, n_samples=batch, seconds=seconds)
    return found


def layer_times(
    folders: Sequence[Path], *, threads: int | None = None, batch: int = 1, sizes: Mapping[str, int] | None = None
) -> dict[str, LayerTimes]:
    """What each layer of artifacts of the native engine takes, on made-up inputs; see lighten.runtime.profile.

    Raises:
        ConfigError, ArtifactError: as in benchmark; and for other runtimes, which do not tell.
    """
    found: dict[str, LayerTimes] = {}
    for folder in folders:
        artifact = read_artifact(Path(folder))
        inputs = [made_up(spec, {BATCH: batch, **(sizes or {})}) for spec in artifact.inputs]
        n_threads = threads or artifact.options.get("threads") or usable_cores()
        found |= profile({str(folder): Path(folder)}, inputs, threads=n_threads)
    return found


def made_up(spec: TensorSpec, sizes: Mapping[str, int]) -> Array:
    """Standard normal for floats, zeros for the rest, since an index or a mask has to be valid. Always the same.

    Raises:
        ConfigError: a free axis of spec has no size.
    """
    if missing := [size for size in spec.shape if isinstance(size, str) and size not in sizes]:
        raise ConfigError(
            f"Input '{spec.name}' has the free axes {missing}. Give their sizes: --size {missing[0]}=128."
        )
    shape = [sizes[size] if isinstance(size, str) else size for size in spec.shape]
    if spec.dtype.startswith("float"):
        return np.random.default_rng(0).standard_normal(shape).astype(spec.dtype)
    return np.zeros(shape, spec.dtype)


def _must_take(artifact: Artifact, first: Artifact, inputs: Sequence[Array], sizes: Mapping[str, int]) -> None:
    own = [made_up(spec, sizes) for spec in artifact.inputs]
    if [(x.shape, x.dtype) for x in own] != [(x.shape, x.dtype) for x in inputs]:
        raise ConfigError(
            f"'{artifact.path}' takes {[spec.to_dict() for spec in artifact.inputs]}, but '{first.path}' takes "
            f"{[spec.to_dict() for spec in first.inputs]}. Only models with the same inputs can be compared."
        )


def _load_per_core() -> float | None:
    try:
        return os.getloadavg()[0] / usable_cores()
    except (AttributeError, OSError):  # Windows
        return None


def _finite(values: list[float]) -> list[float | None]:
    return [value if np.isfinite(value) else None for value in values]
