"""What this machine has, and what that means for the choice of scheme and runtime."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lighten.errors import MissingExtraError
from lighten.runtime.backends import BACKENDS, Description, backend
from lighten.runtime.cpu import CPU, int8_saturates, this_cpu

GPU_DEVICES = {"CUDAExecutionProvider", "TensorrtExecutionProvider", "CoreMLExecutionProvider", "DmlExecutionProvider"}


@dataclass(frozen=True)
class Machine:
    """cpu; the runtimes that are installed; those that are not, with what installs them; advice, a sentence each."""

    cpu: CPU
    runtimes: tuple[Description, ...]
    missing: dict[str, str]
    advice: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def this_machine() -> Machine:
    """Ask the CPU and import every runtime that is installed: takes seconds."""
    runtimes, missing = [], {}
    for name in BACKENDS:
        try:
            runtimes.append(backend(name).describe())
        except MissingExtraError as error:
            missing[name] = str(error)
    cpu = this_cpu()
    return Machine(cpu, tuple(runtimes), missing, tuple(advise(cpu, runtimes)))


def advise(cpu: CPU, runtimes: Sequence[Description]) -> list[str]:
    """What the instructions and devices that are here mean. Expectations only: `lighten benchmark` says what is so."""
    advice = [_on_int8(cpu)]
    if cpu.amx:
        advice.append("AMX multiplies int8 and bfloat16 tiles: expect w8a8 to gain most at batches above 1.")
    if cpu.cores == 1:
        advice.append("One core: threads=1; a second thread only takes turns with the first.")
    else:
        advice.append(
            f"{cpu.cores} cores: try 1 to {cpu.cores} threads; small models are often fastest below the full number, "
            "and parallel single-threaded workers give the most samples/s."
        )
    advice.append("Large matrices at batch 1 wait for memory, not for arithmetic: there w4 and w8 weights pay most.")
    if any(runtime.name == "native" for runtime in runtimes):
        advice.append(_on_zeros(cpu))
    for runtime in runtimes:
        if found := sorted(GPU_DEVICES.intersection(runtime.devices)):
            advice.append(f"{runtime.name} offers {', '.join(found)}; int8 placed for a CPU need not be fast there.")
    return advice


def _on_zeros(cpu: CPU) -> str:
    zeros = "Zeros in blocks of 4×1 are left out by the runtime native: "
    if cpu.avx512:
        return (
            zeros + "with AVX-512, 90 % of them made networks 4 to 8 times as fast as dense ONNX Runtime (on a Zen 4)."
        )
    return zeros + "how fast that is without AVX-512 was not measured yet, `lighten accelerate` will tell."


def _on_int8(cpu: CPU) -> str:
    if cpu.vnni:
        return "VNNI: int8 dot products in one step, without saturation: use w8a8 with all 8 bits."
    if int8_saturates(cpu) and cpu.avx2:
        return (
            "AVX2 without VNNI: products of u8 and s8 are added in 16 bits and saturate: use w8a8 with 7-bit weights, "
            "and expect less than with VNNI."
        )
    if int8_saturates(cpu):
        return "No AVX2: int8 is unlikely to be faster than float here; prune instead."
    if cpu.neon_dotprod:
        return "NEON dot product: int8 dot products in one step, without saturation: use w8a8 with all 8 bits."
    return "No int8 dot product is known here: int8 saves size for certain, time only if measured."
