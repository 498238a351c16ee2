"""`lighten benchmark ARTIFACT… [--vs BASELINE]`: time artifacts side by side and say which differences are shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from lighten.cli.console import Format, FormatOption, print_json, stderr

if TYPE_CHECKING:
    from lighten.runtime.benchmark import Benchmark, Entry
    from lighten.runtime.native.profiler import LayerTimes
    from lighten.runtime.throughput import Throughput

BUSY = 0.5  # runnable tasks a core


def benchmark(
    artifacts: Annotated[list[Path], typer.Argument(metavar="ARTIFACT...", help="Folders of artifacts.")],
    vs: Annotated[
        Path | None, typer.Option(metavar="BASELINE", help="What to compare with; the first one if not given.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="For all; else what each artifact asks for.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Samples a call.")] = 1,
    size: Annotated[
        list[str] | None, typer.Option(metavar="AXIS=N", help="Size of another free axis; can be repeated.")
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="Fresh processes for each artifact.")] = 6,
    blocks: Annotated[int, typer.Option(min=1, help="Alternating blocks in each process.")] = 5,
    block_ms: Annotated[float, typer.Option(min=0.1, help="Milliseconds a block, at least.")] = 20.0,
    throughput: Annotated[
        bool, typer.Option("--throughput", help="Samples a second of parallel processes of one thread, instead.")
    ] = False,
    layers: Annotated[
        bool, typer.Option("--layers", help="What each layer takes, instead; artifacts of the native engine tell.")
    ] = False,
    output: FormatOption = Format.TEXT,
) -> None:
    """Time artifacts side by side: latency, speed-up with its interval, memory, cold start, energy."""
    from lighten.runtime import benchmark as library

    folders = artifacts if vs is None else [vs, *(folder for folder in artifacts if folder != vs)]
    sizes = dict(_axis(text) for text in size or [])
    if throughput:
        with stderr.status(f"Filling the machine with each of {len(folders)} artifacts"):
            rates = library.throughputs(folders, batch=batch, sizes=sizes)
        if output is Format.JSON:
            print_json({name: [asdict(point) for point in points] for name, points in rates.items()})
        else:
            stderr.print(draw_throughputs(rates, batch))
        return
    if layers:
        with stderr.status(f"Timing the layers of {len(folders)} artifacts"):
            times = library.layer_times(folders, threads=threads, batch=batch, sizes=sizes)
        if output is Format.JSON:
            print_json({name: asdict(each) for name, each in times.items()})
        else:
            for name, each in times.items():
                stderr.print(draw_layers(name, each, batch))
        return
    with stderr.status(f"Timing {len(folders)} artifacts"):
        found = library.benchmark(
            folders,
            threads=threads,
            batch=batch,
            sizes=sizes,
            processes=processes,
            blocks=blocks,
            min_block_ms=block_ms,
        )
    if output is Format.JSON:
        print_json(found.to_dict())
        return
    stderr.print(draw(found))
    if found.load is not None and found.load > BUSY:
        stderr.print(f"The machine was busy when this began ({found.load:.1f} tasks a core): intervals are wide.")
    for entry in found.entries[1:]:
        stderr.print(sentence(entry, found.entries[0].name), highlight=False, markup=False, soft_wrap=True)


def draw(found: Benchmark) -> Table:
    """A row an artifact."""
    table = Table(title=f"batch {found.batch}")
    table.add_column("artifact", overflow="fold")
    for heading in ("runtime", "threads", "median ms", "p90", "p99", "speed-up (95 %)", "cold start ms", "peak MiB"):
        table.add_column(heading, justify="right")
    has_energy = any(entry.sample.energy_mj is not None for entry in found.entries)
    if has_energy:
        table.add_column("mJ a call", justify="right")
    for entry in found.entries:
        sample = entry.sample
        cells = [
            *(entry.name, entry.artifact.runtime, str(entry.threads)),
            *(f"{value:.3f}" for value in (sample.median, sample.p90, sample.p99)),
            interval(entry),
            f"{sample.start_up.cold_start_ms:.0f}",
            f"{sample.peak_bytes / 2**20:.0f}",
        ]
        if has_energy:
            cells.append("-" if sample.energy_mj is None else f"{sample.energy_mj:.3g}")
        table.add_row(*cells)
    return table


def draw_throughputs(rates: Mapping[str, Sequence[Throughput]], batch: int) -> Table:
    """A row for each artifact and number of processes."""
    table = Table(title=f"batch {batch}, processes of one thread")
    table.add_column("artifact", overflow="fold")
    for heading in ("processes", "samples/s", "efficiency"):
        table.add_column(heading, justify="right")
    for name, points in rates.items():
        for point in points:
            table.add_row(name, str(point.workers), f"{point.samples_per_s:.0f}", f"{point.efficiency:.0%}")
    return table


def draw_layers(name: str, times: LayerTimes, batch: int) -> Table:
    """A row a layer, in the order of the network, and what the call takes beside them."""
    table = Table(title=f"{name}, batch {batch}: {times.whole:.4f} ms a call")
    table.add_column("layer", overflow="fold")
    for heading in ("µs", "of the call"):
        table.add_column(heading, justify="right")
    beside = {"(before the first layer)": times.layers.get("", 0.0), "(around the engine)": times.rest}
    for layer, ms in ({k: v for k, v in times.layers.items() if k} | {k: v for k, v in beside.items() if v}).items():
        table.add_row(layer, f"{1e3 * ms:.2f}", f"{ms / times.whole:.1%}")
    return table


def interval(entry: Entry) -> str:
    """The speed-up with its interval, or what stands in its place."""
    if entry.speedup is None:
        return "baseline"
    return f"{entry.speedup.value:.2f} ({entry.speedup.low:.2f} to {entry.speedup.high:.2f})"


def sentence(entry: Entry, baseline: str) -> str:
    """What may be said about entry; nothing where the interval includes 1."""
    assert entry.speedup is not None
    if entry.verdict == "not different":
        return f"{entry.name}: no difference from {baseline} is shown; the interval {interval(entry)} includes 1."
    factor = entry.speedup.value if entry.verdict == "faster" else 1 / entry.speedup.value
    return f"{entry.name}: {factor:.2f} times {entry.verdict} than {baseline}."


def _axis(text: str) -> tuple[str, int]:
    name, _, count = text.partition("=")
    if not name or not count.isdecimal() or int(count) < 1:
        raise typer.BadParameter(f"'{text}' is not AXIS=N, for example seq=128.", param_hint="--size")
    return name, int(count)
