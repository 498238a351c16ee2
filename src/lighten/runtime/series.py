"""Times of many small artifacts, one after another in a single process: a look at each, for tables of costs.

Nothing here is precise to a per cent, as `measure_latency` is: one process, no turns. It costs some 50 ms an artifact
instead of seconds, and what it is for, comparing single layers of one runtime, differs by factors.
"""

import statistics
from pathlib import Path

from lighten.errors import ArtifactError
from lighten.runtime.process import Process

BLOCKS = 3
BLOCK_SECONDS = 0.004
WARM_UP_SECONDS = 0.05


class Series(Process):
    """The process that times; threads: of every artifact. It ends with the context."""

    def __init__(self, threads: int) -> None:
        super().__init__("lighten.runtime.series", "layers one by one", threads)
        self.threads = threads

    def milliseconds(self, artifact: Path, batch: int) -> float:
        """Of a call on made-up inputs: the lowest median of three short blocks, for what disturbs only adds.

        Raises:
            ArtifactError: it cannot be read, loaded or run.
        """
        answer = self.ask({"artifact": str(artifact), "batch": batch, "threads": self.threads})
        return float(answer["ms"])


def main() -> None:
    """Answer on stdin's lines until it closes."""
    from lighten.runtime.worker import answer_each

    answer_each(lambda job: {"ms": _timed(Path(job["artifact"]), job["batch"], job["threads"])})


def _timed(folder: Path, batch: int, threads: int) -> float:
    from lighten.runtime.artifact import read_artifact
    from lighten.runtime.backends import compile_artifact
    from lighten.runtime.benchmark import made_up
    from lighten.runtime.spec import BATCH
    from lighten.runtime.worker import timed, warm_up

    artifact = read_artifact(folder)
    call = compile_artifact(artifact, threads)
    arrays = [made_up(spec, {BATCH: batch}) for spec in artifact.inputs]
    try:
        warm_up(lambda: call(arrays), WARM_UP_SECONDS)
        blocks = [timed(lambda: call(arrays), min_seconds=BLOCK_SECONDS, min_calls=3) for _ in range(BLOCKS)]
    except Exception as error:  # each runtime has its own
        raise ArtifactError(str(error)) from error
    return min(statistics.median(block) for block in blocks) / 1e6


if __name__ == "__main__":
    main()
