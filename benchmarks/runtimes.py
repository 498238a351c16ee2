"""Five networks on every runtime, and accelerate's choice beside them: a JSON line a case, and a Markdown table.

The claim: the choice is never more than 5 % slower than the best of the others. The others run on every core, compiled
PyTorch the way that suits eager best; the choice runs as accelerate wrote it. Those that accelerate's first look saw
within twice the fastest, and the choice, are timed side by side in processes of their own that take turns: medians, and
the 95 % interval of (choice / best of the others). Of the rest the table gives the first look, marked ≈: starting
compiled PyTorch five times more takes longer than everything else. Run: python benchmarks/runtimes.py > runtimes.jsonl
"""

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from lighten.accelerate import accelerate
from lighten.accelerate.drafts import write_drafts
from lighten.graph.capture import capture
from lighten.runtime.contest import HOPELESS
from lighten.runtime.cpu import this_cpu, usable_cores
from lighten.runtime.machine import this_machine
from lighten.runtime.measure import LatencySample, measure_latency, ratio_interval
from lighten.tasks.networks import ResNet20, SeedNet
from networks import GPT, MobileNet, ViT, settle_

OTHERS = {"torch": "eager", "torch compiled": "compiled", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
CHOICE = "accelerate"
ALLOWED = 1.05


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


def race(
    model: nn.Module, x: Tensor, drafts: dict[str, Path], scratch: Path
) -> tuple[dict[str, Any], dict[str, LatencySample]]:
    """accelerate's first look at each of OTHERS, and samples of those of them that are worth it, and of the choice.

    drafts: the artifact of every way, for any batch size.
    """
    choice = accelerate(model, (x,), scratch)
    looks = {name: trial for trial in choice.notes["accelerate"]["trials"] if (name := other(trial))}
    slowest_ms = HOPELESS * min(trial["median_ms"] for trial in looks.values())
    near = {name: trial for name, trial in looks.items() if trial["median_ms"] <= slowest_ms}
    samples = measure_latency(
        {**{name: drafts[trial["way"]] for name, trial in near.items()}, CHOICE: choice.path},
        [x.numpy()],
        threads={**{name: trial["threads"] for name, trial in near.items()}, CHOICE: choice.options["threads"]},
    )
    return dict(choice.notes["accelerate"], looks=looks), samples


def other(trial: dict[str, Any]) -> str:
    """Which of OTHERS trial is, or "" for none."""
    if trial["refused"]:
        return ""
    if trial["way"].startswith("torch compiled"):  # tried once only
        return "torch compiled"
    return str(trial["way"]) if trial["way"] in OTHERS and trial["threads"] == usable_cores() else ""


def judged(samples: dict[str, LatencySample]) -> dict[str, Any]:
    """How many times longer the choice takes than the best of the others, and whether the claim holds."""
    best = min((name for name in samples if name != CHOICE), key=lambda name: samples[name].median)
    ratio = ratio_interval(samples[CHOICE], samples[best])
    verdict = "fails" if ratio.low > ALLOWED else "holds" if ratio.value <= ALLOWED else "unclear"
    return {"best_of_the_others": best, "ratio": ratio.value, "ci95": [ratio.low, ratio.high], "verdict": verdict}


def row(case: dict[str, Any]) -> str:
    """A line of the table, times in milliseconds."""

    def shown(name: str) -> str:
        if name in case["median_ms"]:
            return f"{case['median_ms'][name]:.3f}"
        return f"≈ {case['first_look_ms'][name]:.3f}" if name in case["first_look_ms"] else "-"

    low, high = case["ci95"]
    cells = [
        *(case["network"], str(case["batch"]), *map(shown, OTHERS)),
        *(f"{shown(CHOICE)}: {case['winner']}", f"{case['ratio']:.2f} ({low:.2f} to {high:.2f})", case["verdict"]),
    ]
    return f"| {' | '.join(cells)} |"


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
        if options.network and name not in options.network:
            continue
        with tempfile.TemporaryDirectory(prefix="lighten-") as folder:
            written = write_drafts(capture(model, (x,)), (x,), None, Path(folder))
            drafts = {draft.name: draft.artifact.path for draft in written if draft.artifact is not None}
            for batch in options.batch or (1, 8):
                console.print(f"{time.monotonic() - started:.0f} s: {name}, batch {batch}", highlight=False)
                notes, samples = race(model, x[:batch], drafts, Path(folder) / f"choice-{batch}")
                case = {
                    "network": name,
                    "batch": batch,
                    "median_ms": {key: sample.median for key, sample in samples.items()},
                    "p90_ms": {key: sample.p90 for key, sample in samples.items()},
                    "first_look_ms": {key: trial["median_ms"] for key, trial in notes["looks"].items()},
                    "winner": notes["winner"],
                    **judged(samples),
                }
                cases.append(case)
                print(json.dumps({**case, **environment}), flush=True)
    heads = ["network", "batch", *OTHERS.values(), CHOICE, "accelerate / best of the others (95 %)", "claim"]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}", *map(row, cases)]
    print("\n".join(lines), file=sys.stderr)
    count = Counter(case["verdict"] for case in cases)
    console.print(f"{time.monotonic() - started:.0f} s; of {len(cases)}: {dict(count)}", highlight=False)


if __name__ == "__main__":
    main()
