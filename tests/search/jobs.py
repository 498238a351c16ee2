"""Jobs for tests of workers: functions that other processes can import."""

import os
import signal
import time
from pathlib import Path

import torch

from lighten.errors import ConfigError
from lighten.task import Task


def about(task: Task, number: int, *, tell: object) -> tuple[str, int, int, int]:
    return task.name, number, os.getpid(), torch.get_num_threads()


def writes(task: Task, text: str, *, folder: Path, tell: object) -> None:
    folder.mkdir(parents=True)
    (folder / "text").write_text(text)


def refuses(task: Task, *, tell: object) -> None:
    raise ConfigError(f"{task.name} is refused")


def sleeps(task: Task, begun: Path, *, tell: object) -> None:
    begun.write_text("yes")
    time.sleep(600)


def dies(task: Task, times: int, count: Path, *, tell: object) -> str:
    """Its process is killed the first so many times."""
    n = int(count.read_text()) if count.exists() else 0
    if n < times:
        count.write_text(str(n + 1))
        os.kill(os.getpid(), signal.SIGKILL)
    return "done"


def node() -> str:
    """Where a function runs on a Ray cluster."""
    import ray

    return str(ray.get_runtime_context().get_node_id())
