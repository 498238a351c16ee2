"""Integer networks on Fashion-MNIST: accuracy on the 10,000 test images after each way to quantize.

    python benchmarks/quantize_static.py --to static.jsonl                  every case: a JSON line each, then a table
    python benchmarks/quantize_static.py --to static.jsonl --task fashion-mnist-mobilenetv2
    python benchmarks/quantize_static.py --to static.jsonl --case "adaround w4a8" --case "nncf w8a8"
    python benchmarks/quantize_static.py --to static.jsonl --table          the table of what is there already
    python benchmarks/quantize_static.py --simulated "rtn+bias w8a8"        whether PyTorch and the artifact agree

Needs the network of `lighten train TASK`, and the extra `bench` for the peers (see quantize_peers.py). Cases that --to
holds already are not run again. All are calibrated on the same 512 training images. In w4a4 the first and the last
layer have 8 bits. "qat" trains on --images training images,
--epochs times. After a +: steps before rounding, eq for equalization and bias for bias correction. "nncf-fast" is with
NNCF's fast bias correction, "nncf" with the other one, by its backend for OpenVINO. All but that, torchao's and NNCF's
4 bits is scored as ONNX Runtime runs it. `agreement` is the share of test images that get the float network's answer;
intervals of drops are paired. --simulated compares what the quantized module makes in PyTorch with what ONNX Runtime
makes of its artifact: the share of equal answers.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from quantize_peers import Runs, by_nncf, by_onnxruntime, by_torchao, in_onnxruntime
from torch import Tensor, nn
from torch.utils.data import Subset

from lighten.quantize import quantize
from lighten.quantize.qat import finish, prepare
from lighten.recover.finetune import FineTuneConfig, fine_tune
from lighten.task import Task, batches, load_task

# Of each network's w4a4, the layers with 8 bits: the first and the last.
ENDS = {"fashion-mnist": ("conv1", "fc"), "fashion-mnist-mobilenetv2": ("stem", "fc")}
STEPS = {"eq": "equalization", "bias": "bias-correction"}
METHODS = [f"{method}{steps}" for method in ("rtn", "mse", "gptq", "adaround") for steps in ("", "+bias", "+eq+bias")]
CASES = [
    "float float",
    *(f"{way} w8a8" for way in ("rtn", "rtn+bias", "rtn+eq+bias", "onnxruntime", "nncf-fast", "nncf", "torchao")),
    *(f"{way} w4a8" for way in (*METHODS, "qat", "nncf-fast")),
    *(f"{way} w4a4" for way in (*METHODS, "qat")),  # NNCF takes no activations of 4 bits
]
BATCH = 250


def scheme_of(task: Task, scheme: str) -> str:
    return "; ".join([scheme, *(f"{end}=w8a8" for end in ENDS[task.name])]) if scheme == "w4a4" else scheme


def calibration(task: Task) -> list[Tensor]:
    return list(batches(task.calibration, 128))


def by_lighten(task: Task, way: str, scheme: str) -> nn.Module:
    method, *steps = way.split("+")
    asked = [STEPS[step] for step in steps]
    return quantize(task.model, scheme_of(task, scheme), method=method, calibration=calibration(task), steps=asked)


def trained(task: Task, scheme: str, epochs: int, images: int) -> nn.Module:
    assert task.train is not None
    assert task.loss is not None
    prepared = prepare(task.model, scheme_of(task, scheme), calibration=calibration(task))
    data = Subset(task.train, range(min(images, len(task.train))))  # type: ignore[arg-type]
    recipe = FineTuneConfig(epochs=epochs, lr=0.01, batch_size=128, distill_weight=0.5)

    def tell(step: Any) -> None:
        if step.step % 50 == 0:
            print(f"step {step.step} of {step.n_steps}, loss {step.loss:.4f}", file=sys.stderr, flush=True)

    return finish(fine_tune(prepared, data, task.loss, recipe, teacher=task.model, on_step=tell))


def make(task: Task, way: str, scheme: str, epochs: int, images: int) -> Runs:
    seen = calibration(task)
    if way == "onnxruntime":
        return by_onnxruntime(task.model, seen)
    if way == "torchao":
        return by_torchao(task.model, seen)
    if way.startswith("nncf"):
        fast = way.endswith("fast")
        return by_nncf(task.model, seen, fast=fast, weight_bits=int(scheme[1]), openvino=not fast)
    made = task.model
    if way == "qat":
        made = trained(task, scheme, epochs, images)
    elif way != "float":
        made = by_lighten(task, way, scheme)
    return in_onnxruntime(made, seen[0])


def answers(task: Task, runs: Runs, limit: int) -> tuple[Tensor, Tensor]:
    """What runs says of the first limit test images, and what is right."""
    given, right = [], []
    for images, labels in torch.utils.data.DataLoader(Subset(task.holdout, range(limit)), BATCH):
        given.append(runs(images).argmax(1))
        right.append(labels)
    return torch.cat(given), torch.cat(right)


def score(given: Tensor, exact: Tensor, right: Tensor) -> dict[str, float]:
    """accuracy, the drop in points with half its paired 95 % interval, and agreement with exact."""
    lost = (exact == right).double() - (given == right).double()
    return {
        "accuracy": float((given == right).double().mean()),
        "drop": round(100 * float(lost.mean()), 2),
        "drop_ci95": round(100 * 1.96 * float(lost.std()) / len(lost) ** 0.5, 2),
        "agreement": float((given == exact).double().mean()),
    }


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def simulated(task: Task, case: str, limit: int) -> dict[str, Any]:
    """How often the artifact gives another answer than the module that it was exported from."""
    way, scheme = case.split()
    made = by_lighten(task, way, scheme).eval()
    with torch.no_grad():
        here, there = (answers(task, runs, limit)[0] for runs in (made, in_onnxruntime(made, calibration(task)[0])))
    return {"task": task.name, "simulated": case, "n": len(here), "equal": float((here == there).double().mean())}


def table(rows: list[dict[str, Any]], task: str) -> str:
    lines = ["| scheme | way | accuracy | drop in points (95 %) | agreement |", "|---|---|---|---|---|"]
    schemes = list(dict.fromkeys(case.split()[1] for case in CASES))
    mine = [row for row in rows if row["task"] == task]
    for row in sorted(mine, key=lambda row: (schemes.index(row["scheme"]), row["drop"])):
        drop = f"{row['drop']:.2f} ± {row['drop_ci95']:.2f}"
        way = f"{row['way']}, {row['steps']} steps" if row["steps"] else row["way"]
        accuracy, agreement = (f"{100 * row[name]:.2f} %" for name in ("accuracy", "agreement"))
        lines.append(f"| {row['scheme']} | {way} | {accuracy} | {drop} | {agreement} |")
    return "\n".join(lines)


def run(given: argparse.Namespace) -> None:
    done = {row["case"] for row in read(given.to) if row["task"] == given.task}
    left = [case for case in given.case or CASES if case not in done]
    if not left:
        return
    task = load_task(given.task)
    exact, right = answers(task, in_onnxruntime(task.model, calibration(task)[0]), given.limit)
    for case in left:
        way, scheme = case.split()
        start = time.process_time()
        runs = make(task, way, scheme, given.epochs, given.images)
        seconds = time.process_time() - start
        found, _ = answers(task, runs, given.limit)
        row = {"task": given.task, "case": case, "way": way, "scheme": scheme, **score(found, exact, right)}
        steps = given.epochs * (given.images // 128) if way == "qat" else 0
        row |= {"n": len(right), "cpu_seconds": round(seconds, 1), "steps": steps}
        with given.to.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--to", type=Path, help="JSON lines are added to this file")
    what.add_argument("--simulated", metavar="CASE", help="a case of ours")
    parser.add_argument("--task", choices=ENDS, default="fashion-mnist")
    parser.add_argument("--case", choices=CASES, action="append", help="this alone; may be given several times")
    parser.add_argument("--table", action="store_true", help="run nothing")
    parser.add_argument("--limit", type=int, default=10_000, help="test images")
    parser.add_argument("--epochs", type=int, default=1, help="of training, for qat")
    parser.add_argument("--images", type=int, default=55_000, help="training images, for qat")
    given = parser.parse_args()
    if given.simulated:
        print(json.dumps(simulated(load_task(given.task), given.simulated, given.limit)))
        return
    if not given.table:
        run(given)
    print(table(read(given.to), given.task))


if __name__ == "__main__":
    main()
