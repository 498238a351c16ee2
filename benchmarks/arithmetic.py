"""How near the native engine comes to the arithmetic of the CPU: useful multiplications a second, on one thread.

    python benchmarks/arithmetic.py [--network resnet20-wide] [--zeros 0.9] [--batch 8] [--vectors 16x32,8x32]

The network with so many zeros in 4x1 blocks, at each width of vectors (floats, and registers), beside a dense product
of torch, 1024 x 1024 by 1024 x 1024, in the same process by turns; nothing else may run. Medians and bests of rounds. A
JSON line each.
"""

import argparse
import json
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from sparse import NETWORKS, pruned_to

import lighten
from lighten.graph.count import count_macs
from lighten.runtime.native import load_program
from lighten.runtime.native.batch import engine_for
from lighten.runtime.native.schedule import Target
from networks import settle_

ROUNDS, SIDE = 30, 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet20-wide")
    parser.add_argument("--zeros", type=float, default=0.9)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--vectors", default="16x32,8x32")
    args = parser.parse_args()
    torch.set_num_threads(1)
    network = NETWORKS[args.network]
    torch.manual_seed(0)
    x = network.example(args.batch)
    model = network.make().eval() if network.is_trained else settle_(network.make(), x)
    pruned = pruned_to(model, x, args.zeros, "block:4x1")
    useful = round(count_macs(model, (x[:1],)) * (1 - args.zeros)) * args.batch
    with tempfile.TemporaryDirectory() as scratch:
        artifact = lighten.export(pruned, (x,), Path(scratch) / "out", runtime="native")
        program, stored = load_program(artifact.path)
    shapes = [spec.shape[1:] for spec in artifact.outputs]
    a, b = torch.randn(2, SIDE, SIDE)
    calls = {"dense product of torch": (partial(torch.mm, a, b), SIDE**3)}
    for vectors in args.vectors.split(","):
        engine = engine_for(program, stored, shapes, target=Target(*map(int, vectors.split("x"))))
        calls[f"native, {vectors}"] = (partial(engine, [x.numpy()]), useful)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, (call, _macs) in calls.items():
            started = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - started)
    for name, (_call, macs) in calls.items():
        median, best = float(np.median(seconds[name])), min(seconds[name])
        about = {"ms": 1e3 * median, "macs_per_s": macs / median, "best_macs_per_s": macs / best}
        print(json.dumps({"what": name, "macs": macs, **about}), flush=True)


if __name__ == "__main__":
    main()
