"""What each part of the search behind `lighten compress` is worth: the same time, reached in different ways.

    python benchmarks/ablations.py fashion-mnist --ms 0.0585 [--epochs 3] [--only NAME …]

All variants but the last have fewer channels and blocks of zeros, run on the native engine, and are predicted to take
so many milliseconds; how that is shared out among layers, or how they are trained or stored, differs:

allocated         as the search does it: least lasting harm in that time; weights in 8 bits
pruning only      the same after the same training, weights in float32
harm as measured  the harm of zeroing, without dividing it by what is left
by MACs           least harm in as many multiplications as are predicted to take that time
equal shares      the same share of channels of every layer, and of zeros; of those that take no longer the slowest
no teacher        allocated, trained on labels alone
int8 only         all channels, weights and activations in 8 bits, not trained, on runtimes that have integer kernels

They are timed side by side, in processes of their own that take turns. Drops are on selection and on holdout data,
paired, each from one training. A JSON line each, then a table.
"""

import argparse
import itertools
import json
import math
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from lighten.errors import ConfigError
from lighten.graph.capture import capture
from lighten.metric import paired_drop
from lighten.runtime.cpu import usable_cores
from lighten.runtime.measure import measure_latency
from lighten.search.allocate import Allocation
from lighten.search.candidate import Candidate
from lighten.search.config import SearchConfig
from lighten.search.realize import Variant, default_epochs, lower_original, realize, representative_inputs, scored
from lighten.search.space import Network, Space, corrected, look_at, mac_terms, smallest_ms, space, time_terms
from lighten.search.workers import Workers, quiet
from lighten.task import evaluate, load_task

TRAINED = ("allocated", "harm as measured", "by MACs", "equal shares", "no teacher")
INTEGERS, DENSE = "int8 only", ("onnxruntime", "openvino")


def as_measured(made: Space) -> Space:
    pairs = zip(made.choices, made.harms, strict=True)
    return replace(made, harms=tuple(harms * (1 - np.array(choice.options)) for choice, harms in pairs))


def by_macs(made: Space, network: Network, ms: float) -> Allocation:
    """The point of least harm in so many MACs, for the most of these that are predicted to take ms at most."""
    terms = mac_terms(network, made.family)
    total = float(network.macs)
    of_macs = replace(made, terms=tuple(terms), whole=total)
    low, high, best = 0.0, 1.0, None
    for _ in range(12):
        share = (low + high) / 2
        try:
            point = made.at(of_macs.point(share * total).picked)
        except ConfigError:  # no options of so few MACs
            low = share
            continue
        if point.cost <= ms:
            low, best = share, point
        else:
            high = share
    assert best is not None, f"no point takes {ms} ms"
    return best


def equal_shares(made: Space, ms: float) -> Allocation:
    shares = {kind: {s for c in made.choices if c.kind == kind for s in c.options} for kind in ("channels", "zeros")}
    points = []
    for channels, zeros in itertools.product(*map(sorted, shares.values())):
        wanted = [channels if choice.kind == "channels" else zeros for choice in made.choices]
        nearest = [
            int(np.argmin(np.abs(np.array(c.options) - share))) for c, share in zip(made.choices, wanted, strict=True)
        ]
        points.append(made.at(nearest))
    return max((point for point in points if point.cost <= ms), key=lambda point: point.cost)


def name_of(variant: str, found: Candidate) -> str:
    """The row of one of a variant's candidates."""
    if variant == INTEGERS:
        return f"{variant}, {found.plan.runtime}"
    return "pruning only" if found.scheme is None else variant


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task")
    parser.add_argument("--ms", type=float, required=True, help="predicted, of one call")
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
        terms = time_terms(network, "both", "native", whole, config.threads, quiet, workers)
        made = space(network, "both", terms, whole)
        made = corrected(made, smallest_ms(made, config, workers))
        points = {
            "allocated": made.point(options.ms),
            "harm as measured": as_measured(made).point(options.ms),
            "by MACs": by_macs(made, network, options.ms),
            "equal shares": equal_shares(made, options.ms),
            "no teacher": made.point(options.ms),
        }
        variants = {
            name: made.variant(point, in_ms=True, schemes=("w8",), runtimes=("native",), epochs=epochs)
            for name, point in points.items()
        }
        variants["allocated"] = replace(variants["allocated"], schemes=("w8", None))
        variants[INTEGERS] = Variant(name="all channels", schemes=("w8a8",), runtimes=DENSE)
        drops = {}
        for variant_name in options.only:
            how = replace(config, distill_weight=0.0) if variant_name == "no teacher" else config
            for found in realize(task, baseline, variants[variant_name], how, scratch / variant_name, quiet):
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
