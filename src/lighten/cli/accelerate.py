"""`lighten accelerate TASK --out DIR`: the fastest lossless version of a task's model on this machine."""

from __future__ import annotations

from collections.abc import Sized
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.table import Table

from lighten.cli.console import Format, FormatOption, print_json, stderr
from lighten.errors import TaskError

if TYPE_CHECKING:
    from lighten.runtime.artifact import Artifact
    from lighten.task import Task


def accelerate(
    task: Annotated[str, typer.Argument(metavar="TASK", help="A built-in task, or file.py[:name] holding a Task.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Where the artifact goes.")],
    throughput: Annotated[
        bool,
        typer.Option("--throughput/--latency", help="Fill the machine with parallel workers, or serve one caller."),
    ] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="Of each process; default: whatever is fastest.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Samples a call.")] = 1,
    data: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of the task's data files.")] = None,
    output: FormatOption = Format.TEXT,
) -> None:
    """Try every runtime, thread count and memory layout, and write the fastest that computes what the model does."""
    from lighten.runtime.artifact import must_be_replaceable
    from lighten.runtime.native.parts import sentences
    from lighten.task import load_task

    must_be_replaceable(out.absolute())  # before a task trains or downloads anything
    loaded = load_task(task, **({} if data is None else {"data": data}))
    with stderr.status(loaded.name) as line:
        from lighten.accelerate import accelerate as run

        artifact = run(
            loaded.model,
            samples(loaded, batch),
            out,
            threads=threads,
            mode="throughput" if throughput else "latency",
            on_progress=lambda doing: line.update(f"{loaded.name}: {doing}"),
        )
    if output is Format.JSON:
        parts = artifact.notes.get("parts", [])
        about = {"artifact": str(artifact.path), "runtime": artifact.runtime, "parts": parts}
        print_json({**about, **artifact.notes["accelerate"]})
        return
    stderr.print(draw(artifact.notes["accelerate"]))
    for line_of_text in refusals(artifact.notes["accelerate"]):
        stderr.print(line_of_text, style="dim", markup=False, highlight=False, soft_wrap=True)
    for line_of_text in blocks(artifact.notes["accelerate"]):
        stderr.print(line_of_text, style="dim", markup=False, highlight=False, soft_wrap=True)
    for line_of_text in (verdict(artifact.notes["accelerate"]), *unsteadiness(artifact.notes["accelerate"])):
        stderr.print(line_of_text, markup=False, highlight=False, soft_wrap=True)
    for line_of_text in (f"{artifact.path}: {described(artifact)}", *sentences(artifact.notes)):
        stderr.print(line_of_text, markup=False, highlight=False, soft_wrap=True)


def samples(task: Task, batch: int) -> tuple[Any, ...]:
    """The first `batch` calibration samples, as the model takes them.

    Raises:
        TaskError: there are fewer.
    """
    from lighten.task import as_args, batches

    n_samples = len(cast(Sized, task.calibration))
    if n_samples < batch:
        raise TaskError(
            f"Task '{task.name}' has {n_samples} calibration samples, too few for --batch {batch}. Use a smaller "
            "batch, or give the task more."
        )
    return as_args(next(batches(task.calibration, batch)))


def draw(notes: dict[str, Any]) -> Table:
    """A row for each trial that ran, the winner in bold. off by: how far outputs are from the model's."""
    is_throughput = notes["mode"] == "throughput"
    table = Table(title=f"batch {notes['batch']}, {notes['cores']} cores", title_justify="left")
    table.add_column("", no_wrap=True)
    result = ("workers", "samples/s") if is_throughput else ("p90", "× winner (95 %)")
    for heading in ("threads", "ms", *result, "start s", "off by"):
        table.add_column(heading, justify="right")
    for trial in notes["trials"]:
        if not trial["refused"]:
            table.add_row(*cells(trial, is_throughput), style="bold" if trial["name"] == notes["winner"] else "")
    return table


def refusals(notes: dict[str, Any]) -> list[str]:
    """A line for each trial that was refused."""
    return [f"refused: {trial['name']}: {trial['refused']}" for trial in notes["trials"] if trial["refused"]]


def blocks(notes: dict[str, Any]) -> list[str]:
    """A line about the native engine's layers, where it runs the model."""
    found = notes["blocks"]
    if not found["products"]:
        return []
    if not found["changed"]:
        return [f"native: of {found['products']} products none is quicker here in blocks of another size."]
    saved = [choice["block_ms"] - choice["best_ms"] for choice in found["changed"]]
    return [
        f"native retuned: {len(saved)} of {found['products']} products are quicker here in blocks of another size, "
        f"by {sum(saved):.3f} ms in all, each timed alone."
    ]


def cells(trial: dict[str, Any], is_throughput: bool) -> list[str]:
    """The row of a trial that ran."""
    rate = trial.get("samples_per_s")
    crew = (str(trial.get("workers")), "" if rate is None else f"{rate:.0f}")
    alone = (f"{trial['p90_ms']:.3f}", interval(trial["slowdown"]))
    return [
        *(trial["way"], str(trial["threads"]), f"{trial['median_ms']:.3f}"),
        *(crew if is_throughput else alone),
        *(f"{trial['cold_start_ms'] / 1e3:.1f}", f"{trial['difference']:.1e}"),
    ]


def verdict(notes: dict[str, Any]) -> str:
    """What may be said about the winner; no speed-up where the interval of the ratio includes 1."""
    if notes["mode"] == "throughput":
        best = (
            f"{notes['winner']} × {notes['workers']} workers: {notes['samples_per_s']:.0f} samples/s, "
            f"scaling efficiency {notes['efficiency']:.0%}"
        )
    else:
        best = f"{notes['winner']}: {notes['latency_ms']['median']:.3f} ms"
    speedup = notes["speedup"]
    if speedup is None:
        return f"{best}. Plain ONNX Runtime does not run this model."
    if speedup["over"] == notes["winner"]:
        return f"{best}. Plain ONNX Runtime, which export writes, is the fastest already."
    if not speedup["is_different"]:
        return f"{best}. No difference from plain ONNX Runtime ({speedup['over']}) is shown; {interval(speedup)}."
    return f"{best}, {interval(speedup)} times as fast as plain ONNX Runtime ({speedup['over']})."


def unsteadiness(notes: dict[str, Any]) -> list[str]:
    """A line where the machine changed while the finalists were timed."""
    found = notes.get("steadiness")  # of latency alone
    if found is None or found["is_steady"]:
        return []
    low, high = found["span_ms"]
    return [
        f"The machine was not steady: over {found['rounds']} rounds and a first look {found['moved_most']} took "
        f"{low:.3f} to {high:.3f} ms on average. The choice is the fastest by the mean of all rounds; while the "
        "machine stays in one state, another may be faster."
    ]


def described(artifact: Artifact) -> str:
    """How far its outputs are from the model's."""
    notes = artifact.notes["accelerate"]
    return f"outputs differ by {notes['difference']:.1e} of their size; up to {notes['tolerance']:g} is rounding."


def interval(ratio: dict[str, Any] | None) -> str:
    """A ratio with its interval."""
    if ratio is None:
        return ""
    low, high = ("?" if x is None else f"{x:.2f}" for x in ratio["ci95"])
    return f"{ratio['value']:.2f} ({low} to {high})"
