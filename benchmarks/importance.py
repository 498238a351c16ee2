"""Every criterion for channels on ResNet-20, Fashion-MNIST, at 2, 3 and 4 times fewer MACs: one line a case.

    python benchmarks/importance.py [--criteria l2,taylor] [--factors 2,3,4] [--epochs 3] [--samples 10000]
                                    [--refit] [--peers]
    python benchmarks/importance.py --table FILE...                 what earlier runs printed, as a table

All cases get the same: one-shot pruning over all layers to the same MACs (the ratio is found by bisection), the same
epochs of fine-tuning at the same learning rate, the task's calibration images, and as many training images where a
criterion looks at gradients. Ours are weighed against MACs (scope="macs") where their scores compare between layers,
else ranked globally. --refit fits ours on the calibration images before fine-tuning. --peers adds Torch-Pruning's
criteria under the same budget (pip install torch-pruning). Accuracy on the 10 000 test images before and after
fine-tuning, with its 95 % interval.
"""

import argparse
import copy
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import Subset

from lighten.graph.capture import CapturedModule, capture
from lighten.graph.count import count_macs, count_parameters
from lighten.graph.groups import find_groups
from lighten.graph.labels import propagate
from lighten.graph.rewrite import remove_units_
from lighten.metric import paired_drop
from lighten.prune import prune
from lighten.prune.channels import unit_rows
from lighten.prune.importance.unit_data import comparable, score_units, unit_importance
from lighten.prune.select import SelectConfig, select_units
from lighten.prune.unit_macs import unit_macs
from lighten.recover.finetune import FineTuneConfig, bfloat16_pays, fine_tune, takes_channels_last
from lighten.registry import importance
from lighten.task import Task, batches, evaluate, load_task

BISECTIONS = 8
Make = Callable[..., nn.Module]


def at_macs(make: Make, target: float, task: Task) -> tuple[nn.Module, float]:
    """The model made with the smallest ratio that has at most target MACs, and that ratio."""
    low, high = 0.0, 0.95
    for _ in range(BISECTIONS):
        ratio = (low + high) / 2
        if count_macs(make(ratio), task.example_inputs) <= target:
            high = ratio
        else:
            low = ratio
    return make(high, final=True), high


def ours(task: Task, captured: CapturedModule, criterion: str, refit: bool) -> Make:
    needs = {entry.name: entry.config.needs for entry in unit_importance}.get(criterion)
    scope = "macs" if criterion in comparable() else "global"
    data: dict = {"calibration": list(batches(task.calibration, task.batch_size))}
    if needs == "gradients":
        first = Subset(task.train, range(len(task.calibration)))
        data = {"calibration": list(batches(first, task.batch_size)), "loss": task.loss}

    inputs = task.example_inputs
    labels = propagate(captured, inputs)
    groups = find_groups(labels)
    scores = score_units(captured, labels, groups, unit_rows(captured, groups), criterion, data.get("calibration"),
                         data.get("loss"))  # fmt: skip
    costs = unit_macs(captured, groups, inputs)

    def make(ratio: float, final: bool = False) -> nn.Module:
        if not final:  # the ratio is still being looked for
            gone = select_units(scores, SelectConfig(ratio=ratio, scope=scope), costs=costs)
            smaller = capture(captured, inputs)
            units = torch.cat([group.units[i] for group, i in zip(groups, gone, strict=True)])
            remove_units_(smaller, labels, units, inputs)
            return smaller
        return prune(captured, ratio, importance=criterion, scope=scope, refit=refit, example_inputs=inputs, **data)

    return make


def peer(task: Task, criterion: str) -> Make:
    import torch_pruning as tp

    def make(ratio: float, final: bool = False) -> nn.Module:
        model = copy.deepcopy(task.model)
        score = getattr(tp.importance, criterion)()
        if "Taylor" in criterion or "Hessian" in criterion:
            for inputs, target in batches(Subset(task.train, range(len(task.calibration))), task.batch_size):
                task.loss(model(inputs), target).backward()
        tp.pruner.BasePruner(
            model,
            task.example_inputs,
            importance=score,
            global_pruning=True,
            pruning_ratio=ratio,
            ignored_layers=[model.fc],
        ).step()
        return model

    return make


def print_table(rows: list[dict]) -> None:
    """A row a criterion; accuracy in % before and after fine-tuning at each factor."""
    cases = [row for row in rows if "factor" in row]
    factors = sorted({row["factor"] for row in cases})
    print(f"| criterion | {' | '.join(f'{factor:g}× fewer MACs' for factor in factors)} |")
    print("|---|" + "---|" * len(factors))
    for name in dict.fromkeys(row["criterion"] for row in cases):
        found = {row["factor"]: row for row in cases if row["criterion"] == name}
        cells = [
            f"{100 * row['before_fine_tuning']:.1f} → {100 * row['accuracy']:.2f}" if (row := found.get(f)) else ""
            for f in factors
        ]
        print(f"| {name} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = [entry.name for entry in (*importance, *unit_importance)]
    parser.add_argument("--criteria", default=",".join(known))
    parser.add_argument("--factors", default="2,3,4")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--samples", type=int, help="fine-tune on the first so many training images; default: all")
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--refit", action="store_true")
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("--table", nargs="+", type=Path, metavar="FILE")
    args = parser.parse_args()
    if args.table:
        print_table([json.loads(line) for path in args.table for line in path.read_text().splitlines()])
        return
    task = load_task("fashion-mnist")
    train = task.train if args.samples is None else Subset(task.train, range(args.samples))
    layout = takes_channels_last(task.model, task.example_inputs)
    fast = {"channels_last": layout, "bfloat16": layout and bfloat16_pays(task.model)}
    recipe = FineTuneConfig(epochs=args.epochs, lr=args.lr, **fast)
    dense = evaluate(task.model, task.holdout, task.metric, 250)
    macs = count_macs(task.model, task.example_inputs)
    print(json.dumps({"criterion": "dense", "accuracy": dense.interval.value, "macs": macs}), flush=True)
    captured = capture(task.model, task.example_inputs)  # once, and not for every ratio that is tried
    cases = [(name, partial(ours, task, captured, name, args.refit)) for name in args.criteria.split(",")]
    if args.peers:
        names = ("GroupMagnitudeImportance", "BNScaleImportance", "FPGMImportance", "GroupTaylorImportance")
        cases += [(f"torch-pruning {name}", partial(peer, task, name)) for name in names]
    for name, prepare in cases:
        make = prepare()
        for factor in map(float, args.factors.split(",")):
            start = time.perf_counter()
            model, ratio = at_macs(make, macs / factor, task)
            found = time.perf_counter() - start
            before = evaluate(model, task.holdout, task.metric, 250).interval.value
            tuned = fine_tune(model, train, task.loss, recipe)
            scores = evaluate(tuned, task.holdout, task.metric, 250)
            drop = paired_drop(dense, scores)
            print(
                json.dumps(
                    {
                        "criterion": name,
                        "lr": args.lr,
                        "refit": args.refit and not name.startswith("torch-pruning"),
                        "factor": factor,
                        "ratio": round(ratio, 4),
                        "macs": count_macs(tuned, task.example_inputs),
                        "n_params": count_parameters(tuned),
                        "before_fine_tuning": before,
                        "accuracy": scores.interval.value,
                        "ci95": [scores.interval.low, scores.interval.high],
                        "drop": drop.value,
                        "drop_ci95": [drop.low, drop.high],
                        "epochs": args.epochs,
                        "samples": len(train),
                        "seconds_to_prune": round(found, 1),
                    }
                ),
                flush=True,
            )


if __name__ == "__main__":
    main()
