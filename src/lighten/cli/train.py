"""`lighten train TASK`: train the network of a built-in task and keep its weights in the cache."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lighten.cli.console import Format, FormatOption, print_json, stderr

if TYPE_CHECKING:
    from torch import nn

    from lighten.recover.finetune import Step
    from lighten.tasks.training import Training


def train(
    task: Annotated[str, typer.Argument(metavar="TASK", help="A built-in task, for example fashion-mnist.")],
    data: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of the task's data files.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the training data.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the split, the first weights and the training.")] = None,
    output: FormatOption = Format.TEXT,
) -> None:
    """Train the network of a built-in task on the CPU and keep it for the other commands."""
    from lighten import tasks  # noqa: F401  enters the built-in tasks into the registry
    from lighten.metric import ACCURACY
    from lighten.task import configure, evaluate
    from lighten.tasks.training import trainable

    entry = trainable[task]
    config = configure(entry, {"data": data, "epochs": epochs, "seed": seed})
    training = entry.function(config)
    start = time.perf_counter()
    model = run(training)
    seconds = time.perf_counter() - start
    scores = evaluate(model, training.holdout, ACCURACY, 256)
    accuracy = scores.interval
    if output is Format.JSON:
        print_json(
            {
                "task": task,
                "epochs": training.recipe.epochs,
                "seed": training.recipe.seed,
                "metric": {
                    "name": ACCURACY.name,
                    "value": accuracy.value,
                    "ci95": [accuracy.low, accuracy.high],
                    "n": scores.n,
                },
                "seconds": seconds,
                "checkpoint": str(training.checkpoint),
            }
        )
        return
    stderr.print(
        f"{task}: accuracy {accuracy.value:.2%} on {scores.n} holdout samples "
        f"(95 % interval {accuracy.low:.2%} to {accuracy.high:.2%}), trained in {seconds:.0f} s",
        highlight=False,
    )
    stderr.print(f"checkpoint: {training.checkpoint}", markup=False, highlight=False, soft_wrap=True)


def run(training: Training) -> nn.Module:
    """Run training under a progress bar with the loss, the accuracy on the selection data and the time left."""
    from lighten.metric import ACCURACY
    from lighten.task import evaluate

    columns: list[Any] = [
        TextColumn("epoch {task.fields[epoch]}/" + str(training.recipe.epochs)),
        BarColumn(),
        TextColumn("loss {task.fields[loss]:.3f}  accuracy {task.fields[accuracy]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    ]
    with Progress(*columns, console=stderr) as progress:
        bar = progress.add_task(training.name, total=None, epoch=1, loss=float("nan"), accuracy="-")
        loss = float("nan")

        def on_step(step: Step) -> None:
            nonlocal loss
            # One batch's loss jumps about; its running mean over some twenty steps can be read.
            loss = step.loss if step.step == 1 else 0.95 * loss + 0.05 * step.loss
            progress.update(bar, completed=step.step, total=step.n_steps, epoch=step.epoch, loss=loss)

        def on_epoch(epoch: int, model: nn.Module) -> None:
            reached = evaluate(model, training.selection, ACCURACY, 256).interval.value
            progress.update(bar, accuracy=f"{reached:.2%}")
            line = f"epoch {epoch}/{training.recipe.epochs}: loss {loss:.3f}, accuracy {reached:.2%} on selection data"
            progress.console.print(line, highlight=False)

        return training.run(on_step, on_epoch)
