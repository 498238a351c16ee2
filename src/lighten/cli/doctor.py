"""`lighten doctor`: what this machine has, and what that means for the choice of scheme."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from lighten.cli.console import Format, FormatOption, print_json, stderr

if TYPE_CHECKING:
    from lighten.runtime.cpu import CPU
    from lighten.runtime.machine import Machine

FEATURES = {"avx2": "AVX2", "avx512": "AVX-512", "vnni": "VNNI", "amx": "AMX", "neon_dotprod": "NEON dot product"}


def doctor(output: FormatOption = Format.TEXT) -> None:
    """Show the CPU features, cores, memory and runtimes of this machine, and what they mean."""
    from lighten.runtime.machine import this_machine

    machine = this_machine()
    if output is Format.JSON:
        print_json(machine.to_dict())
        return
    stderr.print(draw(machine))
    for sentence in machine.advice:
        stderr.print(f"• {sentence}", highlight=False, markup=False)


def draw(machine: Machine) -> Table:
    """The facts, a row each."""
    table = Table(show_header=False, box=None)
    table.add_row("CPU", f"{machine.cpu.name} ({machine.cpu.architecture})")
    table.add_row("features", ", ".join(features(machine.cpu)) or "none that matter here")
    table.add_row("cores", str(machine.cpu.cores))
    table.add_row("memory", f"{machine.cpu.memory_bytes / 2**30:.1f} GiB" if machine.cpu.memory_bytes else "unknown")
    for runtime in machine.runtimes:
        table.add_row(runtime.name, f"{runtime.version}: {', '.join(runtime.devices)}")
    for name, reason in machine.missing.items():
        table.add_row(name, reason)
    return table


def features(cpu: CPU) -> list[str]:
    """The names of those features that cpu has."""
    return [label for field, label in FEATURES.items() if getattr(cpu, field)]
