"""Progress: what an engine says that it does next, for a command to show."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

OnProgress = Callable[[str], None]
T = TypeVar("T")


def silent(doing: str) -> None:
    """Say nothing."""


def announced(items: Iterable[T], doing: str, on_progress: OnProgress) -> Iterator[T]:
    """items, each announced before it is worked on; how many there are need not be known."""
    for index, item in enumerate(items):
        on_progress(f"{doing}, batch {index + 1}")
        yield item
