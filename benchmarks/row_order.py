"""Would another order of its outputs make a layer with scattered zeros faster? One JSON line for each share of zeros.

    python benchmarks/row_order.py [--task fashion-mnist] [--zeros 0.7,0.8,0.9]

Outputs in pairs that share many inputs would need fewer blocks of R = 2. Their best pairing is a matching of the
largest weight in the graph whose edges are weighed by common inputs; it is found greedily and improved by exchanges
between two pairs (2-opt). A layer whose rows stand in that order takes at most the time that it would take if each row
were written where it belongs. Times are the thread's own, of one sample, medians of short runs that alternate, summed
over all layers of stride 1. gain: all layers with the best R, in any order, over the same in their own order.
"""

import argparse
import json
import time

import numpy as np
import torch
from torch import nn

import lighten
from lighten.runtime.native.engine import Engine
from lighten.runtime.native.packed import Array, pack
from lighten.runtime.native.program import Conv, Program
from lighten.runtime.native.program import Tensor as Sizes
from lighten.runtime.native.stored import Stored

SAMPLES = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="fashion-mnist")
    parser.add_argument("--zeros", default="0.7,0.8,0.9")
    parser.add_argument("--seconds", type=float, default=5.0)
    args = parser.parse_args()
    task = lighten.load_task(args.task)
    layers = layers_of(task.model.eval(), task.example_inputs[0])
    sizes = np.abs(np.concatenate([layer.weight.detach().numpy().ravel() for layer, _ in layers]))
    for scope in ("global", "layer"):
        for zeros in map(float, args.zeros.split(",")):
            engines: dict[tuple[int, str], tuple[Engine, Array]] = {}
            for i, (layer, shape) in enumerate(layers):
                weight = layer.weight.detach().numpy()
                limit = np.quantile(sizes if scope == "global" else np.abs(weight), zeros)
                weight = np.where(np.abs(weight) > limit, weight, 0).astype(np.float32)
                order = pairs(weight.reshape(len(weight), -1) != 0)
                x = np.random.default_rng(0).standard_normal((SAMPLES, *shape)).astype(np.float32)
                for name, rows, block in (("R1", weight, 1), ("R2", weight, 2), ("pairs", weight[order], 2)):
                    engines[i, name] = engine(layer, rows, block, shape), x
            took = times(engines, args.seconds)
            total = {name: sum(ms for (_, of), ms in took.items() if of == name) for name in ("R1", "R2", "pairs")}
            best = [
                [min(took[i, name] for name in names) for i in range(len(layers))] for names in (total, ("R1", "R2"))
            ]
            about = {"task": args.task, "scope": scope, "zeros": zeros, "ms": total}
            print(json.dumps(about | {"gain": 1 - sum(best[0]) / sum(best[1])}), flush=True)


def layers_of(model: nn.Module, x: torch.Tensor) -> list[tuple[nn.Conv2d, tuple[int, ...]]]:
    """Convolutions of stride 1 without groups, in the order of their calls, and the sizes of their inputs."""
    found: list[tuple[nn.Conv2d, tuple[int, ...]]] = []

    def note(layer: nn.Module, inputs: tuple[torch.Tensor, ...], _: torch.Tensor) -> None:
        if isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer.stride == (1, 1):
            found.append((layer, tuple(inputs[0].shape[1:])))

    hooks = [layer.register_forward_hook(note) for layer in model.modules()]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return found


def pairs(mask: Array) -> list[int]:
    """The rows of mask [rows, columns] in pairs that have many columns in common, and then one that is left over."""
    common = mask.astype(np.float32) @ mask.T.astype(np.float32)
    left, found = np.ones(len(mask), bool), []
    for i, j in zip(*np.unravel_index(np.argsort(-np.triu(common, 1), axis=None), common.shape), strict=True):
        if i < j and left[i] and left[j]:
            left[[i, j]] = False
            found.append((i, j))
    a, b = np.array(found).reshape(-1, 2).T.copy()
    while exchange_(a, b, common):
        pass
    return [*np.stack([a, b], 1).ravel().tolist(), *np.flatnonzero(left).tolist()]


def exchange_(a: Array, b: Array, common: Array) -> bool:
    """Exchange rows between pairs (a[k], b[k]) where that gains most, each pair at most once; whether any was."""
    now = common[a, b][:, None] + common[a, b]
    straight = common[np.ix_(a, a)] + common[np.ix_(b, b)] - now
    crossed = common[np.ix_(a, b)] + common[np.ix_(b, a)] - now
    gain = np.triu(np.maximum(straight, crossed), 1)
    touched: set[int] = set()
    for p, q in zip(*np.unravel_index(np.argsort(-gain, axis=None)[: 4 * len(a)], gain.shape), strict=True):
        if gain[p, q] > 0 and not touched & {p, q}:
            touched |= {p, q}
            if straight[p, q] >= crossed[p, q]:
                b[p], a[q] = a[q], b[p]
            else:
                b[p], b[q] = b[q], b[p]
    return bool(touched)


def engine(layer: nn.Conv2d, weight: Array, block: int, shape: tuple[int, ...]) -> Engine:
    kernel, padding = tuple(layer.kernel_size), tuple(map(int, layer.padding))
    op = Conv(inputs=(0,), weight="w", rows=len(weight), block=block, kernel=kernel, padding=padding)
    program = Program((Sizes(*shape),), (op,), (1,))
    out = program.tensors[1]
    return Engine(program, Stored({"w": pack(weight, None, block)}), [(out.rows, out.height, out.width)])


def times(engines: dict[tuple[int, str], tuple[Engine, Array]], seconds: float) -> dict[tuple[int, str], float]:
    """Median ms of one sample."""
    taken: dict[tuple[int, str], list[float]] = {key: [] for key in engines}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or not all(len(each) > 4 for each in taken.values()):
        for key, (run, x) in engines.items():
            run([x])
            start = time.thread_time_ns()
            run([x])
            taken[key].append((time.thread_time_ns() - start) / 1e6 / SAMPLES)
    return {key: float(np.median(each)) for key, each in taken.items()}


if __name__ == "__main__":
    main()
