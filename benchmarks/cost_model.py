"""How well the search foretells the time of a network on the native engine: predicted beside measured milliseconds.

    python benchmarks/cost_model.py fashion-mnist [--points 12] [--family both] [--batch 1]

Points of the family at targets that fall from the original's time to a thirtieth of it, as the search takes them, each
pruned without any training, with w8 weights, and timed in processes of its own that take turns. A JSON line each, then
the rank correlation (Spearman) and the quartiles of measured over predicted.
"""

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr
from torch import nn

from lighten.errors import ConfigError
from lighten.export import export
from lighten.graph.capture import capture
from lighten.prune.gradual import prune_gradually
from lighten.prune.layers import find_layers
from lighten.quantize import quantize
from lighten.runtime.cpu import usable_cores
from lighten.runtime.measure import measure_latency
from lighten.search.config import BLOCK, SearchConfig
from lighten.search.realize import Variant, lower_original, representative_inputs
from lighten.search.space import look_at, space, time_terms
from lighten.search.workers import Workers, quiet
from lighten.task import Task, load_task


def pruned(task: Task, variant: Variant) -> nn.Module:
    """As the search prunes, by l2: time depends on how much goes, not on what."""
    how: dict[str, Any] = {"scope": "layer", "importance": "l2"}
    if any(variant.channels.values()):
        model = prune_gradually(task, 0.0, overrides=dict(variant.channels), round_to=SearchConfig().round_to, **how)
        task = replace(task, model=model)
    if any(variant.zeros.values()):
        names = [layer.name for layer in find_layers(capture(task.model, task.example_inputs))[0]]
        kept = [name for name in names if not variant.zeros.get(name)]
        how |= {"granularity": BLOCK, "schedule": "one-shot", "exclude": kept}
        task = replace(task, model=prune_gradually(task, 0.0, overrides=dict(variant.zeros), **how))
    return task.model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task")
    parser.add_argument("--points", type=int, default=12)
    parser.add_argument("--family", default="both", choices=("zeros", "both"))
    parser.add_argument("--batch", type=int, default=1)
    options = parser.parse_args()
    task, config = load_task(options.task), SearchConfig(threads=usable_cores(), batch=options.batch)
    captured = capture(task.model, task.example_inputs)
    inputs = representative_inputs(task, captured, config.batch)
    with tempfile.TemporaryDirectory(prefix="lighten-") as name:
        scratch = Path(name)
        paths = {"the original": lower_original(task, config, "native", scratch / "original").path}
        whole = measure_latency(paths, inputs, threads=config.threads, processes=2)["the original"].median
        workers = Workers(task)
        network = look_at(workers, config, quiet)
        terms = time_terms(network, options.family, "native", whole, config.threads, quiet, workers)
        made = space(network, options.family, terms, whole)
        predicted = {"the original": whole}
        for i, target in enumerate(np.geomspace(0.7, 1 / 30, options.points) * whole):
            try:
                point = made.point(target)
            except ConfigError:
                break
            variant = made.variant(point, in_ms=True)
            model = pruned(task, variant)
            model = quantize(model, "w8", example_inputs=task.example_inputs)
            key = f"{i}: {variant.name}"
            to = scratch / str(i)
            paths[key] = export(model, task.example_inputs, to, runtime="native", threads=config.threads).path
            predicted[key] = point.cost
        samples = measure_latency(paths, inputs, threads=config.threads, processes=3)
    for key in paths:
        print(json.dumps({"point": key, "predicted_ms": predicted[key], "ms": samples[key].median}), flush=True)
    found = np.array([[predicted[key], samples[key].median] for key in paths if key != "the original"])
    ratios = np.quantile(found[:, 1] / found[:, 0], (0, 0.25, 0.5, 0.75, 1))
    print(json.dumps({"spearman": float(spearmanr(*found.T).statistic), "measured_over_predicted": ratios.tolist()}))


if __name__ == "__main__":
    main()
