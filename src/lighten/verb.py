"""A package that bears the name of its verb can be called like it.

`lighten.quantize` is both the verb that users call and the package it lives in, and Python binds the package to that
name as soon as anything inside it is imported. So the package itself is made callable, and both readings hold at any
time: ``lighten.quantize(model, "w8a8")`` and ``lighten.quantize.ops``.
"""

import inspect
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


class VerbPackage(ModuleType):
    """A module that passes calls on to the function of its own last name."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the verb."""
        verb: Callable[..., Any] = vars(self)[self.__name__.rpartition(".")[2]]
        return verb(*args, **kwargs)


def make_callable(package: str, verb: Callable[..., Any]) -> None:
    """Let calls of the imported package of that name go to verb, which it must hold under its own last name."""
    module = sys.modules[package]
    assert vars(module).get(package.rpartition(".")[2]) is verb, "the verb is named like its package"
    module.__class__ = VerbPackage
    module.__signature__ = inspect.signature(verb)  # type: ignore[attr-defined]
