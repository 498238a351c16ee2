"""Energy of the CPU package, from RAPL counters where the system lets us read them (Linux, usually root only).

Source: Linux kernel, Documentation/power/powercap/powercap.rst. A counter holds microjoules and wraps at
max_energy_range_uj. It covers everything the package does, so it means something only while nothing else runs.
"""

from dataclasses import dataclass
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")


@dataclass(frozen=True)
class EnergyMeter:
    """counters: the folders of the packages. Empty where none can be read; then every reading is None."""

    counters: tuple[Path, ...]

    def read(self) -> tuple[int, ...] | None:
        """Microjoules so far, one a package."""
        try:
            return tuple(int((folder / "energy_uj").read_text()) for folder in self.counters) or None
        except (OSError, ValueError):
            return None

    def joules_between(self, before: tuple[int, ...] | None, after: tuple[int, ...] | None) -> float | None:
        """Of all packages together; correct as long as no counter wrapped twice (minutes)."""
        if before is None or after is None:
            return None
        try:
            pairs = zip(self.counters, before, after, strict=True)
            used = sum(end - start + (0 if end >= start else _range(folder)) for folder, start, end in pairs)
        except (OSError, ValueError):  # a counter that wraps, of which nobody says where
            return None
        return used / 1e6


def _range(counter: Path) -> int:
    return int((counter / "max_energy_range_uj").read_text())


def energy_meter(root: Path = POWERCAP) -> EnergyMeter:
    """The package counters that can be read here; "intel-rapl" is the driver's name on AMD too."""
    packages = sorted(folder for folder in root.glob("intel-rapl:*") if folder.name.count(":") == 1)
    meter = EnergyMeter(tuple(packages))
    return meter if meter.read() is not None else EnergyMeter(())
