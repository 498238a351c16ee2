"""Five networks on every runtime, and accelerate's choice beside them: a JSON line a case, and a Markdown table.

The claim: the choice is never more than 5 % slower than the best of the others. The others run as they come, on every
core; the choice runs as accelerate wrote it. Each has processes of its own, which take turns; medians, and the 95 %
interval of (choice / best of the others). Run: python benchmarks/runtimes.py > runtimes.jsonl
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from lighten.accelerate import accelerate
from lighten.accelerate.drafts import write_drafts
from lighten.graph.capture import capture
from lighten.runtime.cpu import this_cpu, usable_cores
from lighten.runtime.machine import this_machine
from lighten.runtime.measure import LatencySample, measure_latency, ratio_interval
from lighten.tasks.networks import ResNet20, SeedNet
from networks import GPT, MobileNet, ViT, settle_

OTHERS = {"torch": "eager", "torch compiled": "compiled", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
CHOICE = "accelerate"
ALLOWED = 1.05
PROCESSES = 3  # with more the intervals are more honest, and the run longer: a compiled one takes 5 s or more to start


def networks() -> dict[str, tuple[nn.Module, Tensor]]:
    """Each with a batch of eight."""
    torch.manual_seed(0)
    found: dict[str, tuple[nn.Module, Tensor]] = {
        "SeedNet": (SeedNet(), torch.randn(8, 1, 32, 32)),
        "ResNet20": (ResNet20(), torch.randn(8, 1, 32, 32)),
        "MobileNetV2 ×0.5": (MobileNet(), torch.randn(8, 3, 128, 128)),
        "ViT": (ViT(), torch.randn(8, 3, 64, 64)),
        "GPT": (GPT(), torch.randint(1000, (8, 64))),
    }
    return {name: (settle_(model, x), x) for name, (model, x) in found.items()}


def race(model: nn.Module, x: Tensor, scratch: Path) -> tuple[dict[str, LatencySample], dict[str, Any]]:
    """The sample of each of OTHERS and of the choice, and the notes of accelerate."""
    choice = accelerate(model, (x,), scratch / "choice")
    drafts = write_drafts(capture(model, (x,)), (x,), None, scratch / "drafts")
    ways = {draft.name: draft.artifact for draft in drafts}
    paths = {name: ways[name].path for name in OTHERS if ways[name] is not None}
    threads = dict.fromkeys(paths, usable_cores())
    samples = measure_latency(
        {**paths, CHOICE: choice.path},
        [x.numpy()],
        threads={**threads, CHOICE: choice.options["threads"]},
        processes=PROCESSES,
    )
    return samples, dict(choice.notes["accelerate"])


def judged(samples: dict[str, LatencySample]) -> dict[str, Any]:
    """How many times longer the choice takes than the best of the others."""
    best = min((name for name in samples if name != CHOICE), key=lambda name: samples[name].median)
    ratio = ratio_interval(samples[CHOICE], samples[best])
    return {
        "best_of_the_others": best,
        "ratio": {"value": ratio.value, "ci95": [ratio.low, ratio.high]},
        "holds": ratio.value <= ALLOWED,
    }


def row(case: dict[str, Any]) -> str:
    """A line of the table, times in milliseconds; ✗ where the claim fails."""
    times = [case["median_ms"].get(name) for name in OTHERS]
    low, high = case["ratio"]["ci95"]
    ratio = f"{case['ratio']['value']:.2f} ({low:.2f} to {high:.2f})" + ("" if case["holds"] else " ✗")
    cells = [case["network"], str(case["batch"]), *("-" if t is None else f"{t:.3f}" for t in times)]
    return f"| {' | '.join([*cells, f'''{case['median_ms'][CHOICE]:.3f}: {case['winner']}''', ratio])} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", action="append", choices=list(networks()), help="only these; can be repeated")
    parser.add_argument("--batch", action="append", type=int, help="only these instead of 1 and 8; can be repeated")
    options = parser.parse_args()
    console = Console(stderr=True)
    cases, started = [], time.monotonic()
    versions = {runtime.name: runtime.version for runtime in this_machine().runtimes}
    environment = {"cpu": this_cpu().name, "cores": usable_cores(), "versions": versions}
    for name, (model, x) in networks().items():
        for batch in options.batch or (1, 8):
            if options.network and name not in options.network:
                continue
            console.print(f"{time.monotonic() - started:.0f} s: {name}, batch {batch}", highlight=False)
            with tempfile.TemporaryDirectory(prefix="lighten-") as scratch:
                samples, notes = race(model, x[:batch], Path(scratch))
            case = {
                "network": name,
                "batch": batch,
                "median_ms": {key: sample.median for key, sample in samples.items()},
                "p90_ms": {key: sample.p90 for key, sample in samples.items()},
                "winner": notes["winner"],
                **judged(samples),
            }
            cases.append(case)
            print(json.dumps({**case, **environment}), flush=True)
    heads = ["network", "batch", *OTHERS.values(), "accelerate", "accelerate / best of the others (95 %)"]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}", *map(row, cases)]
    print("\n".join(lines), file=sys.stderr)
    console.print(f"{time.monotonic() - started:.0f} s; {sum(c['holds'] for c in cases)} of {len(cases)} hold")


if __name__ == "__main__":
    main()
