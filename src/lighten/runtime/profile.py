"""Profile: what each layer of a network takes on the native engine, in a process that does nothing else.

Only the native engine tells: see lighten.runtime.native.profiler. The artifacts are timed one after another in one
process, each for a moment, since what is looked for are the differences between layers and between networks.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from lighten.errors import ArtifactError
from lighten.runtime.measure import inputs_file
from lighten.runtime.native.profiler import LayerTimes, Profiler
from lighten.runtime.process import Process
from lighten.runtime.spec import Array

BLOCKS, BLOCK_SECONDS, MIN_CALLS = 4, 0.04, 2
WARM_UP_SECONDS = 0.2


def profile(
    artifacts: Mapping[str, Path],
    inputs: Sequence[Array] | Mapping[str, Array],
    *,
    threads: int,
    on_progress: Callable[[float], None] = lambda share: None,
) -> dict[str, LayerTimes]:
    """What the layers of each artifact take in a call on inputs, in order or by name.

    The shortest of some short blocks, for what disturbs only adds.

    Raises:
        ArtifactError: one cannot be read, loaded or run, or is not for the native engine, or its calls told nothing.
    """
    found = {}
    with inputs_file(inputs) as file, Process("lighten.runtime.profile", "networks by layers", threads) as process:
        for i, (name, path) in enumerate(artifacts.items()):
            on_progress(i / len(artifacts))
            answer = process.ask({"artifact": str(path), "inputs": str(file), "threads": threads})
            found[name] = LayerTimes(**answer)
    return found


def main() -> None:
    """Answer on stdin's lines until it closes."""
    from lighten.runtime.worker import answer_each

    answer_each(lambda job: asdict(_profiled(Path(job["artifact"]), Path(job["inputs"]), job["threads"])))


def _profiled(folder: Path, inputs: Path, threads: int) -> LayerTimes:
    from lighten.runtime import native
    from lighten.runtime.artifact import read_artifact
    from lighten.runtime.worker import read_inputs, warm_up

    artifact = read_artifact(folder)
    if artifact.runtime != "native":
        raise ArtifactError(f"'{folder}' is for {artifact.runtime}. Only the native engine tells what a layer takes.")
    profiler = Profiler()
    engine = native.compile(artifact, threads, profiler)
    arrays = read_inputs(artifact, inputs)

    def call() -> None:
        profiler.call(lambda: engine(arrays))

    try:
        warm_up(call, WARM_UP_SECONDS)
        blocks = []
        for _ in range(BLOCKS):
            profiler.reset()
            n_calls, end = 0, time.perf_counter() + BLOCK_SECONDS
            while n_calls < MIN_CALLS or time.perf_counter() < end:
                call()
                n_calls += 1
            blocks.append(profiler.read())
    except Exception as error:  # what a runtime raises in mixed networks
        raise ArtifactError(str(error)) from error
    told = [block for block in blocks if block is not None]
    if not told:
        raise ArtifactError(
            f"In {BLOCKS} blocks of calls no two told what their layers take: other threads did all of it, since this "
            f"one got no core. Use fewer than {threads} threads, or wait until the machine is less busy."
        )
    return min(told, key=lambda block: block.whole)


if __name__ == "__main__":
    main()
