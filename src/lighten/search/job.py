"""The far end of a pool's process: one job, then it ends. ``python -m lighten.search.job``, one line of JSON on stdin.

{path, task, job, result}: the module search path, and files: the pickled task, the pickled job, and where to pickle
(error, traceback, value) to. The answer on stdout says only that the result is there.
"""

import json
import os
import pickle
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import cloudpickle

from lighten.runtime.worker import die_with_the_parent
from lighten.search.workers import quiet


def main() -> None:
    """Do the job. What it prints to stdout goes to stderr, which the parent keeps."""
    die_with_the_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all of a terminal's processes; the parent decides
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    asked = json.loads(sys.stdin.readline())
    sys.path[:] = asked["path"]
    Path(asked["result"]).write_bytes(_done(Path(asked["task"]), Path(asked["job"])))
    answers.write("{}\n")
    answers.flush()


def _done(task_file: Path, job_file: Path) -> bytes:
    try:
        task = pickle.loads(task_file.read_bytes())
        job, args, kwargs = pickle.loads(job_file.read_bytes())
        return _pickled(None, "", job(task, *args, tell=quiet, **kwargs))
    except Exception as error:  # noqa: BLE001  the near end raises it
        text = traceback.format_exc()
        try:
            return _pickled(error, text, None)
        except Exception:  # noqa: BLE001  some errors hold what cannot be pickled
            return _pickled(RuntimeError(f"{type(error).__name__}: {error}"), text, None)


def _pickled(*result: Any) -> bytes:
    found: bytes = cloudpickle.dumps(result)
    pickle.loads(found)  # some errors can be pickled, and not be read again
    return found


if __name__ == "__main__":
    main()
