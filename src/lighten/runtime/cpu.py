"""The CPU of this machine: its name, its cores, and the instructions that decide which number format is fast on it."""

import functools
import os
import platform
from dataclasses import dataclass

import cpuinfo


@dataclass(frozen=True, kw_only=True)
class CPU:
    """architecture: as platform.machine(), lower case. cores: that this process may use. memory_bytes: 0 = unknown.

    vnni: one-step int8 dot products on x86 (avx512_vnni or avx_vnni). amx: int8 or bfloat16 tiles. neon_dotprod: SDOT
    on Arm. The rest are what they say.
    """

    name: str
    architecture: str
    cores: int
    memory_bytes: int = 0
    avx2: bool = False
    avx512: bool = False
    vnni: bool = False
    amx: bool = False
    neon_dotprod: bool = False


@functools.cache
def this_cpu() -> CPU:
    """Ask py-cpuinfo, once a process: it takes up to seconds, because it runs the CPUID instruction in a child."""
    info = cpuinfo.get_cpu_info()
    return from_flags(
        name=str(info.get("brand_raw") or platform.processor() or "unknown CPU"),
        architecture=platform.machine().lower(),
        flags=info.get("flags", ()),
        cores=usable_cores(),
        memory_bytes=_memory_bytes(),
    )


def from_flags(
    *, name: str, architecture: str, flags: tuple[str, ...] | list[str], cores: int, memory_bytes: int
) -> CPU:
    """Read the flags as Linux spells them; macOS has none on Arm, where every Apple core has dot products."""
    found = set(flags)
    is_apple = name.startswith("Apple")
    return CPU(
        name=name,
        architecture=architecture,
        cores=cores,
        memory_bytes=memory_bytes,
        avx2="avx2" in found,
        avx512="avx512f" in found,
        vnni=bool(found & {"avx512_vnni", "avx512vnni", "avx_vnni"}),
        amx=bool(found & {"amx_int8", "amx_bf16", "amx_tile"}),
        neon_dotprod="asimddp" in found or is_apple,
    )


def usable_cores() -> int:
    """How many cores this process may use; fewer than the machine has in a container or under taskset."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def int8_saturates(cpu: CPU) -> bool:
    """Whether u8 × s8 products are summed in pairs in 16 bits here, so that codes of 8 bits can overflow.

    VPMADDUBSW (AVX2 and AVX-512 without VNNI) adds two products with signed saturation at 32767, and 255·127·2 is
    64770. Weights of 7 bits, |code| <= 64, stay below: 255·64·2 = 32640.
    """
    return cpu.architecture in ("x86_64", "amd64") and not cpu.vnni


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        return 0
