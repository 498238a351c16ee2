"""Names of the pluggable things: name ↔ config type ↔ function.

The commands, the plans and the conformance tests read these registries, so a new method is one file with a decorator
and one import line in its package. A name taken twice is an error.
"""

import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from lighten.errors import ConfigError

T = TypeVar("T", bound=Callable[..., Any])


@dataclass(frozen=True)
class Entry(Generic[T]):
    """One registered thing: its name, the frozen dataclass of its settings, and the function itself."""

    name: str
    config: type
    function: T


class Registry(Generic[T]):
    """An ordered map of names to entries of one kind, for example every importance criterion."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, Entry[T]] = {}

    def __call__(self, name: str, config: type) -> Callable[[T], T]:
        """Decorate a function to enter it under name."""

        def enter(function: T) -> T:
            if name in self._entries:
                raise ConfigError(f"The {self.kind} '{name}' is registered twice. Give one of them another name.")
            self._entries[name] = Entry(name, config, function)
            return function

        return enter

    def __getitem__(self, name: str) -> Entry[T]:
        if name not in self._entries:
            close = difflib.get_close_matches(name, self._entries, n=1)
            hint = f" Did you mean '{close[0]}'?" if close else ""
            raise ConfigError(f"There is no {self.kind} '{name}'.{hint} Known: {', '.join(self._entries)}.")
        return self._entries[name]

    def __iter__(self) -> Iterator[Entry[T]]:
        return iter(self._entries.values())


importance: Registry[Callable[..., Any]] = Registry("importance criterion")
observer: Registry[Callable[..., Any]] = Registry("range observer")
quantizer: Registry[Callable[..., Any]] = Registry("rounding method")
task: Registry[Callable[..., Any]] = Registry("built-in task")
