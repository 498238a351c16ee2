"""How fast quantizing itself is, and how much memory it takes: a JSON line a case.

    python benchmarks/quantize_speed.py                  one 4096 × 4096 layer, every method that is fast enough
    python benchmarks/quantize_speed.py --size 1024 --repeats 3
    python benchmarks/quantize_speed.py --threads 1      where other work takes the cores: read processor seconds

Each case runs in a process of its own on `--threads` threads. Seconds are of the wall (median and p90 of the repeats)
and of the processor over all threads, which other work on the machine disturbs less. `memory_ratio` is what the process
grew by at its peak while quantizing, over the size of the layer in float32. Goals: rtn 300 M weights/s, hqq 30, gptq
4096 × 4096 within 60 s, memory 3 times the layer.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch

from lighten.quantize import methods as _methods  # noqa: F401  fills the registry
from lighten.quantize.formats import format_of
from lighten.quantize.moments import Moments
from lighten.quantize.packing import pack
from lighten.quantize.scheme import parse_scheme
from lighten.registry import quantizer
from lighten.runtime.cpu import this_cpu

CASES = [
    *(("rtn", "w4-g128"), ("rtn", "w4"), ("rtn", "w8"), ("rtn", "w3-g64"), ("rtn", "nf4"), ("rtn", "fp8")),
    *(("pack", "w4"), ("pack", "w3"), ("hqq", "w4-g64"), ("hqq", "w4"), ("standardized", "w4-g64")),
    *(("awq", "w4-g128"), ("gptq", "w4-g128")),
]


def moments_of_correlated_inputs(n: int) -> Moments:
    x = torch.randn(2 * n, n // 4, generator=torch.Generator().manual_seed(1)) @ torch.randn(n // 4, n)
    return Moments((x.T @ x / len(x))[None], x.abs().mean(0)[None])


def forget_peak_bytes() -> int:
    """Make the peak what the process holds now, and return that. Linux only."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak_bytes()


def peak_bytes() -> int:
    status = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))


def run(method: str, scheme: str, size: int, repeats: int, threads: int) -> dict[str, object]:
    torch.set_num_threads(threads)
    parsed = parse_scheme(scheme)
    form = format_of(parsed)
    weight = torch.randn(size, size, generator=torch.Generator().manual_seed(0)) * 0.02
    if method == "pack":
        codes = torch.randint(0, 2**form.bits, (size, size), dtype=torch.uint8)

        def once() -> object:
            return pack(codes, form.bits)
    else:
        entry = quantizer[method]
        config = entry.config()
        moments = moments_of_correlated_inputs(size) if config.needs_inputs else None
        entry.function(weight[:64, :64], form, parsed.group_size, config, moments_of_correlated_inputs(64))  # warm up

        def once() -> object:
            return entry.function(weight, form, parsed.group_size, config, moments)

    before = forget_peak_bytes()
    wall, processor = [], []
    for _ in range(repeats):
        start, start_processor = time.perf_counter(), time.process_time()
        once()
        wall.append(time.perf_counter() - start)
        processor.append(time.process_time() - start_processor)
    grown = peak_bytes() - before
    wall.sort()
    median, p90 = wall[len(wall) // 2], wall[min(len(wall) - 1, round(0.9 * len(wall)))]
    return {
        "case": f"{method} {scheme}",
        "size": size,
        "median_s": round(median, 4),
        "p90_s": round(p90, 4),
        "processor_s": round(sorted(processor)[len(processor) // 2], 4),
        "million_weights_per_s": round(weight.numel() / median / 1e6, 1),
        "million_weights_per_processor_s": round(weight.numel() / min(processor) / 1e6, 1),
        "memory_ratio": round(grown / (4 * weight.numel()), 2),
        "threads": threads,
        "repeats": repeats,
        "cpu": this_cpu().name,
        "torch": torch.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--case", help="'method scheme': this one, in this process")
    given = parser.parse_args()
    if given.case:
        method, scheme = given.case.split()
        print(json.dumps(run(method, scheme, given.size, given.repeats, given.threads)), flush=True)
        return
    for method, scheme in CASES:
        repeats = 1 if method in ("gptq", "awq") else given.repeats
        options = ["--size", str(given.size), "--repeats", str(repeats), "--threads", str(given.threads)]
        subprocess.run([sys.executable, __file__, "--case", f"{method} {scheme}", *options], check=True)


if __name__ == "__main__":
    main()
