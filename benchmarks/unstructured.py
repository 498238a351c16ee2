"""ResNet-20 on Fashion-MNIST with 80, 90 and 95 % of its weights at zero, without any fine-tuning: one line a case.

    python benchmarks/unstructured.py [--methods magnitude,sparsegpt] [--ratios 0.8,0.9,0.95] [--scope erk] [--table]

Every method gets the same number of weights in each layer (scope erk; LAMP, whose point is where they go, global), the
task's 512 calibration images without labels, and no training. Accuracy on the 10 000 test images, with its 95 %
interval, beside the dense network's.
"""

import argparse
import json
import platform
import time

import torch

from lighten.metric import paired_drop
from lighten.prune import prune
from lighten.prune.masks import masks
from lighten.task import batches, evaluate, load_task

METHODS = "random,magnitude,lamp,kernel,wanda,sparsegpt,obs"
OWN_SCOPE = {"lamp": "global"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--ratios", default="0.8,0.9,0.95")
    parser.add_argument("--scope", default="erk")
    parser.add_argument("--table", action="store_true", help="print a Markdown table at the end")
    args = parser.parse_args()
    ratios = [float(ratio) for ratio in args.ratios.split(",")]
    task = load_task("fashion-mnist")
    calibration = list(batches(task.calibration, task.batch_size))
    dense = evaluate(task.model, task.holdout, task.metric, 250)
    about = {"torch": torch.__version__, "threads": torch.get_num_threads(), "cpu": platform.processor()}
    print(json.dumps({"method": "dense", "accuracy": dense.interval.value, "n": dense.n, **about}), flush=True)
    rows = []
    for method in args.methods.split(","):
        cells, scope = [], OWN_SCOPE.get(method, args.scope)
        for ratio in ratios:
            start = time.perf_counter()
            pruned = prune(
                task.model,
                ratio,
                granularity="element",
                importance=method,
                scope=scope,
                calibration=calibration,
            )
            seconds = time.perf_counter() - start
            sizes = [mask.numel() for mask in masks(pruned).values()]
            zeros = sum(int((pruned.get_parameter(name) == 0).sum()) for name in masks(pruned))
            scores = evaluate(pruned, task.holdout, task.metric, 250)
            drop = paired_drop(dense, scores)
            found = {
                "method": method,
                "ratio": ratio,
                "scope": scope,
                "sparsity": zeros / sum(sizes),
                "accuracy": scores.interval.value,
                "ci95": [scores.interval.low, scores.interval.high],
                "drop": drop.value,
                "drop_ci95": [drop.low, drop.high],
                "seconds": round(seconds, 1),
            }
            print(json.dumps(found), flush=True)
            cells.append(f"{100 * scores.interval.value:.1f}")
        rows.append(f"| {method} | " + " | ".join(cells) + " |")
    if args.table:
        print("| method | " + " | ".join(f"{100 * ratio:g} %" for ratio in ratios) + " |")
        print("|---|" + "---|" * len(ratios))
        print("\n".join(rows))


if __name__ == "__main__":
    main()
