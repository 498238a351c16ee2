"""What timing blocks of every size brings over the sizes that export chooses by costs of one CPU.

    python benchmarks/retune.py [--network resnet20,mobilenetv2-imagenet] [--zeros 0.5,0.7,0.9] [--vectors 16x32,8x16]

Every product alone, one thread, one sample (see lighten.runtime.native.retune): the sum of their times as exported over
that in the quickest blocks, and how long the timing took. --vectors: floats a vector and registers, so that a CPU with
AVX-512 can stand in for one with AVX2 (8x16); its loads and multipliers stay its own. A JSON line each.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from sparse import NETWORKS, pruned_to

import lighten
from lighten.runtime.native import load_program
from lighten.runtime.native.retune import choose_blocks
from lighten.runtime.native.schedule import Target
from networks import settle_


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet20,mobilenetv2-imagenet")
    parser.add_argument("--zeros", default="0.5,0.7,0.9")
    parser.add_argument("--pattern", default="element,block:4x1")
    parser.add_argument("--vectors", default="16x32,8x16")
    args = parser.parse_args()
    for name in args.network.split(","):
        network = NETWORKS[name]
        torch.manual_seed(0)
        x = network.example(1)
        model = network.make().eval() if network.is_trained else settle_(network.make(), x)
        for pattern in args.pattern.split(","):
            for zeros in map(float, args.zeros.split(",")):
                with tempfile.TemporaryDirectory() as scratch:
                    pruned = pruned_to(model, x, zeros, pattern)
                    artifact = lighten.export(pruned, (x,), Path(scratch) / "out", runtime="native")
                    program, stored = load_program(artifact.path)
                for vectors in args.vectors.split(","):
                    started = time.monotonic()
                    choices = choose_blocks(program, stored, 1, Target(*map(int, vectors.split("x"))))
                    as_exported, quickest = (
                        sum(choice.ms[r] for choice, r in zip(choices, blocks, strict=True))
                        for blocks in ([c.block for c in choices], [c.best for c in choices])
                    )
                    about = {"network": name, "pattern": pattern, "zeros": zeros, "vectors": vectors}
                    found = {"products": len(choices), "changed": sum(c.best != c.block for c in choices)}
                    gain = {"ms": quickest, "gain": as_exported / quickest, "took_s": time.monotonic() - started}
                    print(json.dumps({**about, **found, **gain}), flush=True)


if __name__ == "__main__":
    main()
