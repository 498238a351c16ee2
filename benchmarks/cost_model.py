"""How well the search foretells the time of a network on the native engine: predicted beside measured milliseconds.

    python benchmarks/cost_model.py fashion-mnist [--points 12] [--family both] [--batch 1]

Points of the family at targets that fall from the original's time to a thirtieth of it, as the search takes them, each
pruned without any training, with w8 weights, and timed in processes of its own that take turns. A JSON line each, then
the rank correlation (Spearman), the quartiles of measured over predicted, and the seconds that it took to find the harm
of every option and to profile the networks that costs are known from. Harms are kept in the user's cache: for what they
take, set LIGHTEN_CACHE to a folder that has nothing but what `lighten train` left. So many points lie at targets; as
many again have an option drawn by chance for every choice, and others than those that were profiled.
"""

import argparse
import contextlib
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from lighten.errors import ConfigError
from lighten.graph.capture import capture
from lighten.runtime.cpu import usable_cores
from lighten.runtime.measure import measure_latency
from lighten.search.config import SearchConfig
from lighten.search.profiled import profile_networks, profiled_terms
from lighten.search.realize import lower_original, lower_untrained, representative_inputs
from lighten.search.space import look_at, space
from lighten.search.workers import Workers, quiet
from lighten.task import load_task


@contextlib.contextmanager
def clocked(what: str, seconds: dict[str, float]) -> Iterator[None]:
    started = time.monotonic()
    yield
    seconds[what] = round(time.monotonic() - started, 1)


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
        seconds = dict[str, float]()
        with clocked("harms", seconds):
            network = look_at(workers, config, quiet)
        with clocked("profiles", seconds):
            profiled = profile_networks(network, config, quiet, workers)
        made = space(network, options.family, profiled_terms(network, options.family, profiled, whole), whole)
        predicted = {"the original": whole}
        for i, target in enumerate(np.geomspace(0.7, 1 / 30, options.points) * whole):
            try:
                point = made.point(target)
            except ConfigError:
                break
            variant = made.variant(point, in_ms=True, schemes=("w8",), runtimes=("native",))
            key = f"{i}: {variant.name}"
            paths[key] = lower_untrained(task, variant, config, scratch / str(i))
            predicted[key] = point.cost
        draws = np.random.default_rng(1)
        for i in range(options.points):
            point = made.at([int(draws.integers(len(choice.options))) for choice in made.choices])
            variant = made.variant(point, in_ms=True, schemes=("w8",), runtimes=("native",))
            key = f"drawn {i}: {variant.name}"
            paths[key] = lower_untrained(task, variant, config, scratch / f"drawn-{i}")
            predicted[key] = point.cost
        samples = measure_latency(paths, inputs, threads=config.threads, processes=3)
    for key in paths:
        print(json.dumps({"point": key, "predicted_ms": predicted[key], "ms": samples[key].median}), flush=True)
    found = np.array([[predicted[key], samples[key].median] for key in paths if key != "the original"])
    ratios = np.quantile(found[:, 1] / found[:, 0], (0, 0.25, 0.5, 0.75, 1))
    agreement = {"spearman": float(spearmanr(*found.T).statistic), "measured_over_predicted": ratios.tolist()}
    print(json.dumps({**agreement, "seconds": seconds}))


if __name__ == "__main__":
    main()
