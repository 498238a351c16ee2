"""`lighten compress TASK`: name the budget, get the best version that meets it, with its report.

Exit 0 also where nothing met the budget: the verdict says so, and `accepted` in result.json is false.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from lighten.cli.console import Format, FormatOption, print_json, stderr
from lighten.errors import ConfigError

if TYPE_CHECKING:
    from lighten.search import Result
    from lighten.search.driver import Progress as SearchProgress


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
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Of a short training; a long one has four times as many.")
    ] = None,
    max_trials: Annotated[int, typer.Option(min=1, help="Trainings, at most.")] = 24,
    time_limit: Annotated[
        str | None, typer.Option(metavar="TIME", help="Stop with the best so far after, for example, 20m, 90s or 2h.")
    ] = None,
    plan: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Search nothing; do again what this plan.yaml says.")
    ] = None,
    pick: Annotated[
        str | None, typer.Option(metavar="NAME", help="Search nothing; write this candidate of the finished search.")
    ] = None,
    work: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where trials are kept; default: the name of --out and .search.")
    ] = None,
    storage: Annotated[
        str | None, typer.Option(metavar="URL", help="Of the Optuna study; default: SQLite in the work folder.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the search that is there.")] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Trials at once; default: one, on a cluster one a node.")
    ] = None,
    ray: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Trials run on this Ray cluster (extra: ray).")
    ] = None,
    target_label: Annotated[
        str | None, typer.Option(metavar="NAME", help="Time on the cluster's nodes that have the resource NAME.")
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(metavar="NAME|FILE", help="Predict latency for this device profile, instead of measuring here."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    output: FormatOption = Format.TEXT,
) -> None:
    """Prune and quantize TASK's model as far as the budget allows, measure it, and write it with a report."""
    from lighten.plan import Plan
    from lighten.search.config import SearchConfig
    from lighten.task import load_task

    tried: dict[str, Any] = {}
    if ratio or sparsity:  # what is named, and nothing else
        tried = {"ratios": tuple(sorted(ratio or ())), "sparsities": tuple(sorted(sparsity or ()))}
    limit_s = math.inf if time_limit is None else seconds(time_limit)
    again = None if plan is None else Plan.load(plan)
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

        def draw(progress: SearchProgress) -> None:
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
            config=SearchConfig(epochs=epochs, max_trials=max_trials, time_limit_s=limit_s, **tried),
            plan=again,
            pick=pick,
            work_dir=work,
            storage=storage,
            resume=resume,
            workers=workers,
            ray=ray,
            target_label=target_label,
            device=device,
            on_progress=draw,
        )
    if output is Format.JSON:
        print_json(result.data)
        return
    stderr.print(table(result))
    if because := result.data["channels_ranked_by"]["because"]:
        stderr.print(f"Channels are ranked by l2: {because}.", style="yellow", markup=False, highlight=False)
    for loss in result.data["lost_workers"]:
        then = "tried again" if loss["retried"] else "given up"
        said = f"Lost a worker at {loss['at']}, {then}: {loss['why']}"
        stderr.print(said, style="yellow", markup=False, highlight=False)
    if result.data["device"] is not None:
        said = (
            f"All ms are predicted for {result.data['device']['name']} by its profile: trust ranks, not milliseconds."
        )
        stderr.print(said, style="yellow", markup=False, highlight=False)
    stderr.print(f"[bold]{'Accepted' if result.accepted else 'Not accepted'}.[/] ", end="")
    stderr.print(result.verdict, markup=False, highlight=False)
    for name in ("artifact", "plan.yaml", "report.html"):
        stderr.print(f"{name:12} {result.path / name}", markup=False, highlight=False, soft_wrap=True)


def seconds(text: str) -> float:
    """What "90s", "20m", "2h" or a plain number of seconds stands for.

    Raises:
        ConfigError: it is none of these.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip())
    if found is None or float(found[1]) == 0:
        raise ConfigError(f"--time-limit {text} is not a time. Write for example 90s, 20m or 2h.")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]


def table(result: Result) -> Table:
    """Before and after, and every trial between."""
    data = result.data
    drawn = Table(title=f"{data['task']}: {data['trials']} trials in {data['wall_s']} s", title_justify="left")
    for column in ("", "ms", "speed-up", "kB", data["baseline"]["metric"]["name"], "drop"):
        # A name may take several lines; a figure that is cut is none.
        drawn.add_column(column, justify="right" if column else "left", no_wrap=bool(column), overflow="fold")
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
