"""`lighten compress TASK`: name the budget, get the best version that meets it, with its report.

Exit 0 also where nothing met the budget: the verdict says so, and `accepted` in result.json is false.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from lighten.cli.console import Format, FormatOption, print_json, stderr

if TYPE_CHECKING:
    from lighten.search import Result
    from lighten.search.sweep import Progress as SweepProgress


def compress(
    task: Annotated[str, typer.Argument(metavar="TASK", help="A built-in task, or file.py[:name] holding a Task.")],
    max_drop: Annotated[float, typer.Option(help="Largest drop of the metric; 0.01 is one point of accuracy.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Where the artifact and report go.")],
    minimize: Annotated[str, typer.Option(help="latency or size.")] = "latency",
    max_latency_ms: Annotated[float | None, typer.Option(help="Largest time of one call, in milliseconds.")] = None,
    max_size_bytes: Annotated[int | None, typer.Option(help="Largest artifact, in bytes.")] = None,
    accept: Annotated[
        str, typer.Option(help="What must be within --max-drop: the end of the drop's interval, or its point estimate.")
    ] = "interval",
    data: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of the task's data files.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Of every measurement; default: all cores.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Samples a call when timing.")] = 1,
    ratio: Annotated[
        list[float] | None, typer.Option(help="Share of channels to remove; repeat to try several.")
    ] = None,
    sparsity: Annotated[
        list[float] | None, typer.Option(help="Share of zeros in blocks, for the native engine; repeat to try several.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Of fine-tuning a pruned candidate.")] = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    output: FormatOption = Format.TEXT,
) -> None:
    """Prune and quantize TASK's model as far as the budget allows, measure it, and write it with a report."""
    from lighten.search.sweep import SweepConfig
    from lighten.task import load_task

    tried: dict[str, Any] = {}
    if ratio or sparsity:  # what is named, and nothing else
        tried = {"ratios": tuple(sorted(ratio or ())), "sparsities": tuple(sorted(sparsity or ()))}
    loaded = load_task(task, **({} if data is None else {"data": data}))
    with Progress(
        TextColumn("[progress.description]{task.description}", markup=True),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=stderr,
        transient=True,
    ) as bar:
        line = bar.add_task(loaded.name, total=None)

        def draw(progress: SweepProgress) -> None:
            changes: dict[str, Any] = {"description": progress.doing} if progress.doing else {}
            bar.update(line, completed=progress.done, total=progress.total, **changes)

        from lighten.search import compress as run

        result = run(
            loaded,
            max_drop=max_drop,
            minimize=minimize,
            max_latency_ms=max_latency_ms,
            max_size_bytes=max_size_bytes,
            accept=accept,
            out_dir=out,
            threads=threads,
            batch=batch,
            seed=seed,
            sweep_config=SweepConfig(epochs=epochs, **tried),
            on_progress=draw,
        )
    if output is Format.JSON:
        print_json(result.data)
        return
    stderr.print(table(result))
    stderr.print(f"[bold]{'Accepted' if result.accepted else 'Not accepted'}.[/] ", end="")
    stderr.print(result.verdict, markup=False, highlight=False)
    for name in ("artifact", "plan.yaml", "report.html"):
        stderr.print(f"{name:12} {result.path / name}", markup=False, highlight=False, soft_wrap=True)


def table(result: Result) -> Table:
    """Before and after, and every trial between."""
    data = result.data
    drawn = Table(title=f"{data['task']}: {data['trials']} trials in {data['wall_s']} s", title_justify="left")
    for column in ("", "ms", "speed-up", "kB", data["baseline"]["metric"]["name"], "drop"):
        drawn.add_column(column, justify="left" if not column else "right", no_wrap=True)
    base_ms = data["baseline"]["latency_ms"]["median"]

    def row(name: str, entry: dict[str, Any], drop: dict[str, Any] | None, style: str = "") -> None:
        if "latency_ms" not in entry:
            drawn.add_row(name, "not tried" if entry["note"].startswith("not tried") else "failed", style="dim")
            return
        ms = entry["latency_ms"]["median"]
        drawn.add_row(
            name,
            f"{ms:.4g}",
            f"{base_ms / ms:.2f}×",
            f"{entry['size_bytes'] / 1000:.1f}",
            f"{entry['metric']['value']:.4f}",
            "" if drop is None else f"{drop['value']:+.4f}",
            style=style,
        )

    for trial in data["candidates"]:
        row(trial["name"], trial, trial.get("drop"), "" if trial["within_budget"] else "dim")
    drawn.add_section()
    row("the original, on holdout", data["baseline"], None)
    row("the result, on holdout", data["compressed"], data["drop"], "bold")
    return drawn
