"""Five networks on every runtime, and accelerate's choice beside them: a JSON line a pass, and a Markdown table.

The claim: the choice is never more than 5 % slower than the best of the others. The others run on every core, compiled
PyTorch the way that suits eager best; the choice runs as accelerate wrote it. Those that accelerate's first look saw
within twice the fastest, and the choice, are timed side by side in processes of their own that take turns: medians, and
the 95 % interval of (choice / best of the others). Of the rest the table gives the first look, marked ≈: starting
compiled PyTorch five times more takes longer than everything else.

With --passes n, everything is done n times, all cases before the next pass begins, so that a machine which changes
between choosing and timing does not decide alone: the verdict is on the medians over passes, and each pass is printed.
Run: python benchmarks/runtimes.py --passes 3 > runtimes.jsonl
"""

import argparse
import itertools
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from statistics import median
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
from networks import GPT, mobilenet, settle_, vit

OTHERS = {"torch": "eager", "torch compiled": "compiled", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
CHOICE = "accelerate"
ALLOWED = 1.05


def networks() -> dict[str, tuple[nn.Module, Tensor]]:
    """Each with a batch of eight."""
    torch.manual_seed(0)
    found: dict[str, tuple[nn.Module, Tensor]] = {
        "SeedNet": (SeedNet(), torch.randn(8, 1, 32, 32)),
        "ResNet20": (ResNet20(), torch.randn(8, 1, 32, 32)),
        "MobileNetV2 ×0.5": (mobilenet(), torch.randn(8, 3, 128, 128)),
        "ViT": (vit(), torch.randn(8, 3, 64, 64)),
        "GPT": (GPT(), torch.randint(1000, (8, 64))),
    }
    return {name: (settle_(model, x), x) for name, (model, x) in found.items()}


def written(model: nn.Module, x: Tensor, folder: Path) -> dict[str, Path]:
    """The artifact of every way to run model that there is, in folder."""
    drafts = write_drafts(capture(model, (x,)), (x,), None, folder)
    return {draft.name: draft.artifact.path for draft in drafts if draft.artifact is not None}


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
    """How many times longer the choice takes than the best of the others."""
    best = min((name for name in samples if name != CHOICE), key=lambda name: samples[name].median)
    ratio = ratio_interval(samples[CHOICE], samples[best])
    return {"best_of_the_others": best, "ratio": ratio.value, "ci95": [ratio.low, ratio.high]}


def verdict(passes: list[dict[str, Any]]) -> str:
    """Whether the claim holds, by the medians over passes of the ratio and of the lower end of its interval."""
    if median(each["ratio"] for each in passes) <= ALLOWED:
        return "holds"
    return "fails" if median(each["ci95"][0] for each in passes) > ALLOWED else "unclear"


def row(passes: list[dict[str, Any]]) -> str:
    """A line of the table: of one case, times in milliseconds, medians over passes."""

    def shown(name: str) -> str:
        for key, mark in (("median_ms", ""), ("first_look_ms", "≈ ")):
            if found := [each[key][name] for each in passes if name in each[key]]:
                return f"{mark}{median(found):.3f}"
        return "-"

    winners = Counter(each["winner"] for each in passes).most_common()
    named = winners[0][0] if len(winners) == 1 else "; ".join(f"{name} (× {n})" for name, n in winners)
    ratios = [f"{each['ratio']:.2f} ({each['ci95'][0]:.2f} to {each['ci95'][1]:.2f})" for each in passes]
    if len(passes) > 1:
        ratios = [f"{median(each['ratio'] for each in passes):.2f}: {', '.join(ratios)}"]
    cells = [
        *(passes[0]["network"], str(passes[0]["batch"]), *map(shown, OTHERS)),
        *(f"{shown(CHOICE)}: {named}", *ratios, verdict(passes)),
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", action="append", choices=list(networks()), help="only these; can be repeated")
    parser.add_argument("--batch", action="append", type=int, help="only these instead of 1 and 8; can be repeated")
    parser.add_argument("--passes", type=int, default=1, help="how often everything is chosen and timed anew")
    options = parser.parse_args()
    console = Console(stderr=True)
    cases: dict[tuple[str, int], list[dict[str, Any]]] = {}
    started = time.monotonic()
    versions = {runtime.name: runtime.version for runtime in this_machine().runtimes}
    environment = {"cpu": this_cpu().name, "cores": usable_cores(), "versions": versions}
    chosen = {name: each for name, each in networks().items() if not options.network or name in options.network}
    with tempfile.TemporaryDirectory(prefix="lighten-") as folder:
        drafts = {name: written(model, x, Path(folder) / name) for name, (model, x) in chosen.items()}
        for number in range(1, options.passes + 1):
            for (name, (model, x)), batch in itertools.product(chosen.items(), options.batch or (1, 8)):
                console.print(
                    f"{time.monotonic() - started:.0f} s: pass {number}, {name}, batch {batch}", highlight=False
                )
                notes, samples = race(model, x[:batch], drafts[name], Path(folder) / "choice")
                case = {
                    "network": name,
                    "batch": batch,
                    "pass": number,
                    "median_ms": {key: sample.median for key, sample in samples.items()},
                    "p90_ms": {key: sample.p90 for key, sample in samples.items()},
                    "first_look_ms": {key: trial["median_ms"] for key, trial in notes["looks"].items()},
                    "winner": notes["winner"],
                    "steadiness": notes["steadiness"],
                    **judged(samples),
                }
                cases.setdefault((name, batch), []).append(case)
                print(json.dumps({**case, **environment}), flush=True)
    heads = ["network", "batch", *OTHERS.values(), CHOICE, "accelerate / best of the others (95 %)", "claim"]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}", *map(row, cases.values())]
    print("\n".join(lines), file=sys.stderr)
    count = Counter(map(verdict, cases.values()))
    console.print(f"{time.monotonic() - started:.0f} s; of {len(cases)}: {dict(count)}", highlight=False)


if __name__ == "__main__":
    main()
