"""A process of a pool: ``python -m lighten.runtime.pool_worker``. Tensors come and go in shared memory.

It speaks JSON, a line each way: first {artifact, threads, inputs, outputs}, the last two being the files of the shared
memory; then {places} for every batch, answered by the places of the outputs. It ends with its stdin.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from lighten.errors import LightenError
from lighten.runtime.artifact import read_artifact
from lighten.runtime.backends import compile_artifact
from lighten.runtime.shared import SharedArrays


def main() -> None:
    """Answer batches until stdin closes. What libraries print to stdout goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(data: dict[str, Any]) -> None:
        answers.write(json.dumps(data) + "\n")
        answers.flush()

    job = json.loads(sys.stdin.readline())
    try:
        compiled = compile_artifact(read_artifact(Path(job["artifact"])), job["threads"])
    except LightenError as error:
        answer({"error": str(error)})
        return
    inputs, outputs = SharedArrays(Path(job["inputs"])), SharedArrays(Path(job["outputs"]))
    answer({})
    for line in sys.stdin:
        try:
            results = compiled([inputs.view(place) for place in json.loads(line)["places"]])
            answer({"places": outputs.put(results)})
        except Exception as error:  # noqa: BLE001  each runtime has its own; this batch failed, the next may not
            answer({"error": str(error)})


if __name__ == "__main__":
    main()
