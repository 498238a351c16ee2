"""A process that loads one artifact and times it on request: ``python -m lighten.runtime.worker``.

It speaks JSON, a line each way, over stdin and stdout: first a job {artifact, inputs, outputs, threads}, answered by
what loading took, with the outputs of the first call in a file; then {min_seconds} for every block, answered by the
nanoseconds of each call. It ends with its stdin.
Nothing heavy is imported beyond what the artifact's runtime needs.
"""

import ctypes
import json
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from lighten.errors import ArtifactError, LightenError

if TYPE_CHECKING:
    from lighten.runtime.artifact import Artifact
    from lighten.runtime.spec import Array

PR_SET_PDEATHSIG = 1  # linux/prctl.h
MIN_CALLS = 3
ENOUGH_SECONDS = 0.5  # of one model that takes a second a call, one call a block will do
STABLE_WITHIN = 0.05
WARM_UP_SECONDS = 1.0


Load = Callable[[dict[str, Any]], tuple[Callable[[], Any], dict[str, Any]]]


def main() -> None:
    """Answer jobs about artifacts."""
    serve(_load)


def serve(load: Load) -> None:
    """Answer jobs on stdin until it closes. What libraries print to stdout goes to stderr.

    load: from a job to the call that is to be timed, once called, and what loading took.
    """
    answers = _begin()
    job = json.loads(sys.stdin.readline())
    try:
        call, report = load(job)
    except LightenError as error:
        _answer(answers, {"error": str(error)})
        return
    _answer(answers, report)
    warm_up(call)
    for line in sys.stdin:
        refill = timed(call, min_seconds=0.0, min_calls=2)  # caches, which others filled meanwhile
        samples_ns = timed(call, min_seconds=json.loads(line)["min_seconds"], min_calls=MIN_CALLS)
        n_calls = len(refill) + len(samples_ns)
        _answer(answers, {"samples_ns": samples_ns, "n_calls": n_calls, "peak_bytes": peak_bytes()})


def answer_each(of: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Answer every line of stdin by what `of` makes of it until it closes; errors of ours are answers too.

    What libraries print to stdout goes to stderr.
    """
    answers = _begin()
    for line in sys.stdin:
        try:
            answer = of(json.loads(line))
        except LightenError as error:
            answer = {"error": str(error)}
        _answer(answers, answer)


def _begin() -> TextIO:
    """Where answers go; stdout is stderr from now on, and this process ends with its parent."""
    die_with_the_parent()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def die_with_the_parent() -> None:
    """A parent that is killed cannot wake us to end us, if we are stopped just then."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _load(job: dict[str, Any]) -> tuple[Callable[[], Any], dict[str, Any]]:
    started = time.perf_counter()
    import numpy as np
    from safetensors.numpy import save_file

    from lighten.runtime.artifact import read_artifact
    from lighten.runtime.backends import backend, compile_artifact

    artifact = read_artifact(Path(job["artifact"]))
    backend(artifact.runtime)
    imported = time.perf_counter()
    compiled = compile_artifact(artifact, job["threads"])
    loaded = time.perf_counter()
    arrays = read_inputs(artifact, Path(job["inputs"]))
    ready = time.perf_counter()
    try:
        outputs = compiled(arrays)
    except Exception as error:  # each runtime has its own
        raise ArtifactError(str(error)) from error
    first_call_ms = (time.perf_counter() - ready) * 1e3
    save_file({f"#{i}": np.asarray(output, order="C") for i, output in enumerate(outputs)}, job["outputs"])
    return lambda: compiled(arrays), {
        "import_ms": (imported - started) * 1e3,
        "load_ms": (loaded - imported) * 1e3,
        "first_call_ms": first_call_ms,
        "runtime": artifact.runtime,
    }


def read_inputs(artifact: "Artifact", file: Path) -> list["Array"]:
    """The arrays that artifact takes, from a file that measure.inputs_file wrote.

    Raises:
        ConfigError: they are not what it takes.
    """
    from safetensors.numpy import load_file

    from lighten.runtime.spec import check_arrays

    by_name = load_file(file)
    keys = [spec.name if spec.name in by_name else f"#{i}" for i, spec in enumerate(artifact.inputs)]
    arrays = [by_name[key] for key in keys if key in by_name]
    check_arrays(artifact.inputs, arrays)
    return arrays


def warm_up(call: Callable[[], Any], limit_seconds: float = WARM_UP_SECONDS) -> None:
    """Call until the median of a window differs from the last one's by less than 5 %, twice running."""
    deadline = time.perf_counter() + limit_seconds
    previous, steady = float("inf"), 0
    while steady < 2 and time.perf_counter() < deadline:
        median = statistics.median(timed(call, min_seconds=0.02, min_calls=MIN_CALLS))
        steady = steady + 1 if abs(median - previous) <= STABLE_WITHIN * median else 0
        previous = median


def timed(call: Callable[[], Any], *, min_seconds: float, min_calls: int) -> list[int]:
    """Nanoseconds of each call, until both minima are reached; at least one, and few where calls are long."""
    samples: list[int] = []
    begun = time.perf_counter_ns()
    end, enough = begun + int(min_seconds * 1e9), begun + int(ENOUGH_SECONDS * 1e9)
    stopped = 0
    while stopped < end or (len(samples) < min_calls and stopped < enough):
        started = time.perf_counter_ns()
        call()
        stopped = time.perf_counter_ns()
        samples.append(stopped - started)
    return samples


def peak_bytes() -> int:
    """The most memory this process ever held. Linux's ru_maxrss would count the parent's, from before exec."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    if sys.platform == "win32":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def _answer(stream: TextIO, data: dict[str, Any]) -> None:
    stream.write(json.dumps(data) + "\n")
    stream.flush()


if __name__ == "__main__":
    main()
