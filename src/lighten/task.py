"""A Task: a trained model with the data and the metric that say what it is worth.

Samples of calibration are inputs; samples of train, selection and holdout are (inputs, target) pairs. `inputs` is a
tensor, or a tuple of tensors for a model that takes several. Data sets are map-style (``__len__``, ``__getitem__``).
"""

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lighten.errors import TaskError
from lighten.metric import ACCURACY, Metric, Scores, score
from lighten.registry import Entry


@dataclass(frozen=True, kw_only=True)
class Task:
    """Everything that compression may look at.

    model: trained, on the CPU. example_inputs: positional arguments of model, tensors with the batch first.
    calibration: feeds the range observers. selection: chooses between candidates. holdout: confirms the choice,
    once; nothing else may see it. train, loss: for recovery training; without them only post-training methods
    apply. loss is (outputs, targets) -> scalar.

    Raises:
        TaskError: a data set is empty, or train comes without loss.
    """

    name: str
    model: nn.Module
    example_inputs: tuple[Any, ...]
    calibration: Dataset[Any]
    selection: Dataset[Any]
    holdout: Dataset[Any]
    metric: Metric = ACCURACY
    train: Dataset[Any] | None = None
    loss: Callable[[Any, Any], Tensor] | None = None
    batch_size: int = 128

    def __post_init__(self) -> None:
        for field in ("calibration", "selection", "holdout", "train"):
            data = getattr(self, field)
            if data is not None and len(data) == 0:
                raise TaskError(f"Task '{self.name}': its {field} set is empty. Give it at least one sample.")
        if self.train is not None and self.loss is None:
            raise TaskError(f"Task '{self.name}' has training data but no loss. Set loss=, or leave train out.")
        if not isinstance(self.example_inputs, tuple):
            raise TaskError(
                f"Task '{self.name}': example_inputs is a {type(self.example_inputs).__name__}. "
                "Give the model's positional arguments as a tuple, for example (torch.zeros(1, 3, 32, 32),)."
            )


def as_args(inputs: Any) -> tuple[Any, ...]:
    """The positional arguments that a batch of inputs stands for."""
    return tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)


def batches(data: Dataset[Any], batch_size: int) -> Iterator[Any]:
    """Collated batches in order; the last one may be short."""
    # A generator of its own: DataLoader draws a number even without shuffling, and reading must not have side effects.
    return iter(DataLoader(data, batch_size=batch_size, generator=torch.Generator()))


def evaluate(run: Callable[..., Any], data: Dataset[Any], metric: Metric, batch_size: int) -> Scores:
    """Score run (a module, a Runner, any callable of positional inputs) on every sample of data.

    Raises:
        TaskError: see lighten.metric.score.
    """
    if isinstance(run, nn.Module):
        run.eval()
    with torch.no_grad():
        return score(((run(*as_args(inputs)), target) for inputs, target in batches(data, batch_size)), metric)


def load_task(spec: str, **options: Any) -> Task:
    """The built-in task of that name, or the Task in ``file.py[:name]`` (name defaults to ``task``).

    A name may also hold a function without arguments that returns a Task. options are settings of a built-in task, for
    example data="DIR"; one that is None is left at its default.

    Raises:
        TaskError: no such task or file, the file raises, it holds no Task under that name, or the task lacks an option.
    """
    if ".py" in spec:
        if given := [name for name, value in options.items() if value is not None]:
            raise TaskError(
                f"'{spec}' is a task file, which takes no options, but got {', '.join(given)}. Leave it out."
            )
        return _load_from_file(spec)
    from lighten import tasks  # noqa: F401  enters the built-in tasks into the registry
    from lighten.registry import task as registry

    known = {entry.name: entry for entry in registry}
    if spec not in known:
        raise TaskError(
            f"There is no built-in task '{spec}'. Built in: {', '.join(known)}. For your own: file.py[:name]."
        )
    entry = known[spec]
    built = entry.function(configure(entry, options))
    assert isinstance(built, Task)
    return built


def configure(entry: Entry[Any], options: Mapping[str, Any]) -> Any:
    """The config of a built-in task from options; one that is None is left at its default.

    Raises:
        TaskError: the task has no such option.
    """
    given = {name: value for name, value in options.items() if value is not None}
    known = [field.name for field in fields(entry.config)]
    if unknown := [name for name in given if name not in known]:
        raise TaskError(f"Task '{entry.name}' has no option '{unknown[0]}'. Its options: {', '.join(known)}.")
    return entry.config(**given)


def _load_from_file(spec: str) -> Task:
    file, _, name = spec.partition(":")
    name = name or "task"
    path = Path(file)
    if not path.is_file():
        raise TaskError(f"There is no task file '{file}'. Give an existing file.py[:name] or a built-in task's name.")
    module_spec = importlib.util.spec_from_file_location(path.stem, path)
    assert module_spec is not None
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
        found = getattr(module, name, None)
        if callable(found) and not isinstance(found, type):
            found = found()
    except Exception as error:
        raise TaskError(f"Task file '{file}' raised {type(error).__name__}: {error}") from error
    if not isinstance(found, Task):
        held = ", ".join(key for key, value in vars(module).items() if isinstance(value, Task)) or "none"
        raise TaskError(
            f"'{file}' holds no Task named '{name}' (found {type(found).__name__}). Tasks in it: {held}. "
            "Assign lighten.Task(...) to that name, or define a function of that name that returns one."
        )
    return found
