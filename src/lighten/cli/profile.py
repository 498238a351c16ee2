"""`lighten profile`: fit a device profile to this machine, or show one that is there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import Progress
from rich.table import Table

from lighten.cli.console import Format, FormatOption, print_json, stderr

if TYPE_CHECKING:
    from lighten.runtime.device import DeviceProfile


def profile(
    show: Annotated[str | None, typer.Option(metavar="NAME|FILE", help="Show this profile; measure nothing.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Where to write the fitted profile (YAML).")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads to fit for; else every usable core.")] = None,
    layers: Annotated[int, typer.Option(min=10, help="Layers of each dtype to fit to.")] = 30,
    held_out: Annotated[int, typer.Option(min=5, help="Layers of each dtype to judge the fit by.")] = 30,
    seed: Annotated[int, typer.Option(help="Of the choice of layers.")] = 0,
    output: FormatOption = Format.TEXT,
) -> None:
    """Time single layers for a few minutes and fit a roofline to them, for predictions without the machine."""
    if show is not None:
        from lighten.runtime.device import load_profile

        found = load_profile(show)
        if output is Format.JSON:
            print_json(found.to_dict())
        else:
            stderr.print(draw(found))
        return
    from lighten.runtime.cpu import usable_cores
    from lighten.runtime.fit import fit_this_machine

    with Progress(console=stderr) as progress:
        bar = progress.add_task("Timing layers", total=None)
        fit = fit_this_machine(
            threads=threads or usable_cores(),
            n_fitted=layers,
            n_held_out=held_out,
            seed=seed,
            on_progress=lambda done, total: progress.update(bar, completed=done, total=total),
        )
    if out is not None:
        fit.profile.save(out)
    if output is Format.JSON:
        judged = {"rank_correlation": dict(fit.rank_correlation), "median_relative_error": dict(fit.relative_error)}
        print_json({"profile": fit.profile.to_dict(), "n_held_out": fit.n_held_out, **judged})
        return
    stderr.print(draw(fit.profile))
    for dtype, correlation in fit.rank_correlation.items():
        stderr.print(
            f"{dtype}: on {fit.n_held_out} layers held out, rank correlation {correlation:.3f}, "
            f"median error {fit.relative_error[dtype]:.0%} (predicted against measured)",
            highlight=False,
        )


def draw(found: DeviceProfile) -> Table:
    """Every figure with its source."""
    table = Table("figure", "value", "source", title=f"{found.name}: {found.description}")
    for key, entry in found.to_dict().items():
        if not isinstance(entry, dict):
            continue
        rows = {key: entry} if "source" in entry else {f"{key}.{dtype}": figure for dtype, figure in entry.items()}
        for name, figure in rows.items():
            table.add_row(name, f"{figure['value']:.4g}", figure["source"])
    return table
