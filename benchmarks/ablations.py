"""What each part of the search behind `lighten compress` is worth: the same time, reached in different ways.

    python benchmarks/ablations.py fashion-mnist [--channels 0.5] [--zeros 0.8] [--epochs 3] [--only NAME …]

All variants but the last have fewer channels and blocks of zeros and run on the native engine. The first says how much
time there is; of the others the point is sought whose network, not trained yet, takes as long, timed beside it:

equal shares      so many channels of every layer, and so many zeros
allocated         as the search does it: least lasting harm in that time; weights in 8 bits
pruning only      the same after the same training, weights in float32
harm as measured  the harm of zeroing, without dividing it by what is left
by MACs           least harm in so many multiplications
no teacher        allocated, trained on labels alone
int8 only         all channels, weights and activations in 8 bits, not trained, on runtimes that have integer kernels

They are timed side by side, in processes of their own that take turns. Drops are on selection and on holdout data,
paired, each from one training. A JSON line each, then a table.
"""

import argparse
import json
import math
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from lighten.graph.capture import capture
from lighten.metric import paired_drop
from lighten.runtime.cpu import usable_cores
from lighten.runtime.measure import measure_latency
from lighten.search.allocate import Allocation
from lighten.search.candidate import Candidate
from lighten.search.config import SearchConfig
from lighten.search.profiled import profile_networks, profiled_terms
from lighten.search.realize import (
    Variant,
    default_epochs,
    lower_original,
    lower_untrained,
    realize,
    representative_inputs,
    scored,
)
from lighten.search.space import Space, look_at, mac_terms, space
from lighten.search.workers import Workers, quiet
from lighten.task import evaluate, load_task

TRAINED = ("equal shares", "allocated", "harm as measured", "by MACs", "no teacher")
TRIES, CLOSE = 6, 0.03
INTEGERS, DENSE = "int8 only", ("onnxruntime", "openvino")


def as_measured(made: Space) -> Space:
    pairs = zip(made.choices, made.harms, strict=True)
    return replace(made, harms=tuple(harms * (1 - np.array(choice.options)) for choice, harms in pairs))


def equal_shares(made: Space, channels: float, zeros: float) -> Allocation:
    wanted = {"channels": channels, "zeros": zeros}
    return made.at([int(np.argmin(np.abs(np.array(c.options) - wanted[c.kind]))) for c in made.choices])


def in_units_of(goal: Allocation, made: Space) -> Space:
    """made with the harm of each kind in units of what it is in goal; in a search the unit is what a budget allows."""
    harm = {"channels": 0.0, "zeros": 0.0}
    for choice, harms, option in zip(made.choices, made.harms, goal.picked, strict=True):
        harm[choice.kind] += float(harms[option])
    return made.in_units_of(harm)


def as_fast_as(goal: Allocation, made: Space, by: Space, ms: Callable[[list[Allocation]], list[float]]) -> Allocation:
    """made's point whose network takes what goal's does, of those with the least harm in some cost of by's.

    What a cost of by's is in milliseconds is not known: it is moved by what is missing, and the nearest is kept.
    """
    limit, nearest = by.at(goal.picked).cost, (math.inf, goal)
    for _ in range(TRIES):
        point = made.at(by.point(limit).picked)
        took, wanted = ms([point, goal])
        nearest = min(nearest, (abs(math.log(took / wanted)), point), key=lambda pair: pair[0])
        if nearest[0] < CLOSE:
            break
        limit *= wanted / took
    return nearest[1]


def name_of(variant: str, found: Candidate) -> str:
    """The row of one of a variant's candidates."""
    if variant == INTEGERS:
        return f"{variant}, {found.plan.runtime}"
    return "pruning only" if found.scheme is None else variant


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task")
    parser.add_argument("--channels", type=float, default=0.5, help="the equal share that goes")
    parser.add_argument("--zeros", type=float, default=0.8, help="the equal share of what is left")
    parser.add_argument("--epochs", type=int, help="default: those of a short training")
    parser.add_argument("--only", choices=(*TRAINED, INTEGERS), nargs="*", default=(*TRAINED, INTEGERS))
    options = parser.parse_args()
    task, config = load_task(options.task), SearchConfig(threads=usable_cores())
    captured = capture(task.model, task.example_inputs)
    inputs = representative_inputs(task, captured, config.batch)
    epochs = options.epochs or default_epochs(task, config)
    baseline = evaluate(task.model, task.selection, task.metric, task.batch_size)
    on_holdout = evaluate(task.model, task.holdout, task.metric, task.batch_size)
    with tempfile.TemporaryDirectory(prefix="lighten-") as name:
        scratch = Path(name)
        paths = {
            f"the original, {r}": lower_original(task, config, r, scratch / r).path for r in ("onnxruntime", "native")
        }
        whole = measure_latency(paths, inputs, threads=config.threads, processes=2)["the original, native"].median
        workers = Workers(task)
        network = look_at(workers, config, quiet)
        profiled = profile_networks(network, config, quiet, workers)
        made = space(network, "both", profiled_terms(network, "both", profiled, whole), whole)
        of_macs = replace(made, terms=tuple(mac_terms(network, made.family)), whole=float(network.macs))

        def ms(points: list[Allocation]) -> list[float]:
            """Of the points' networks, not trained, timed side by side."""
            with tempfile.TemporaryDirectory(prefix="lighten-") as folder:
                timed = {}
                for i, point in enumerate(points):
                    variant = made.variant(point, in_ms=True, schemes=("w8",), runtimes=("native",))
                    timed[str(i)] = lower_untrained(task, variant, config, Path(folder) / str(i))
                samples = measure_latency(timed, inputs, threads=config.threads, processes=2)
            return [samples[key].median for key in timed]

        goal = equal_shares(made, options.channels, options.zeros)
        least_by = {
            name: in_units_of(goal, by)
            for name, by in {"allocated": made, "harm as measured": as_measured(made), "by MACs": of_macs}.items()
        }
        wanted = {"allocated" if name == "no teacher" else name for name in options.only}
        points = {"equal shares": goal}
        points |= {name: as_fast_as(goal, made, by, ms) for name, by in least_by.items() if name in wanted}
        drops = {}
        for variant_name in options.only:
            how = replace(config, distill_weight=0.0) if variant_name == "no teacher" else config
            if variant_name == INTEGERS:
                variant = Variant(name="all channels", schemes=("w8a8",), runtimes=DENSE)
            else:
                variant = made.variant(
                    points["allocated" if variant_name == "no teacher" else variant_name],
                    in_ms=True,
                    schemes=("w8", None) if variant_name == "allocated" else ("w8",),
                    runtimes=("native",),
                    epochs=epochs,
                )
            for found in realize(task, baseline, variant, how, scratch / variant_name, quiet):
                name = name_of(variant_name, found)
                assert found.path is not None, found.note
                after = scored(task, captured, found.path, task.holdout)
                paths[name], drops[name] = found.path, (found, paired_drop(on_holdout, after))
                print(json.dumps({"name": name, "is": found.name, "drop": found.drop.value}), flush=True)
        samples = measure_latency(paths, inputs, threads=config.threads, processes=3)
    print(json.dumps({name: sample.median for name, sample in samples.items()}))
    print(f"\n| {epochs} epochs | MACs left | predicted ms | ms | kB | drop on selection data (95 %) | on holdout |")
    print("|---" * 7 + "|")
    for name, (found, drop) in drops.items():
        one = found.drop
        print(
            f"| {name} | {found.macs / network.macs:.1%} | {found.predicted_ms or math.nan:.4f} "
            f"| {samples[name].median:.4f} "
            f"| {found.size_bytes / 1000:.0f} | {one.value:.4f} ({one.low:.4f} to {one.high:.4f}) | {drop.value:.4f} |"
        )


if __name__ == "__main__":
    main()
