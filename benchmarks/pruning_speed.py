"""Time of finding groups in deep networks, of pruning against the number of weights, and of the kernel criterion.

    python benchmarks/pruning_speed.py

One line a case; medians of three runs, one process. Networks are untrained: time does not depend on the weights. The
claims: groups of a network of 100 layers in 10 s at most; pruning linear in the number of weights; the kernel criterion
on a million weights within 2 s and 1 GB.
"""

import json
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lighten.graph.capture import capture
from lighten.graph.groups import find_groups
from lighten.graph.labels import propagate
from lighten.prune import prune
from lighten.prune.methods.kernel import KernelWeightsConfig, kernel
from lighten.prune.methods.layer_data import LayerData
from lighten.tasks.networks import BasicBlock


class DeepResNet(nn.Module):
    """ResNet-20's blocks, 3 · n of each width: 6 n + 2 layers."""

    def __init__(self, n: int, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        widths = [width] * n + [2 * width] * n + [4 * width] * n
        pairs = zip([width, *widths[:-1]], widths, strict=True)
        self.blocks = nn.Sequential(*[BasicBlock(a, b, 1 if a == b else 2) for a, b in pairs])
        self.fc = nn.Linear(4 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(self.stem(x)).mean((2, 3)))


def median_s(work: Callable[[], Any], runs: int = 3) -> float:
    """Seconds."""
    found = []
    for _ in range(runs):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def say(**case: Any) -> None:
    """One line."""
    print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in case.items()}), flush=True)


def main() -> None:
    """Run everything."""
    torch.manual_seed(0)
    x = (torch.randn(2, 1, 32, 32),)
    for n in (3, 8, 17, 33):
        captured = capture(DeepResNet(n).eval(), x)
        layers = sum(1 for m in DeepResNet(n).modules() if isinstance(m, (nn.Conv2d, nn.Linear)))
        seconds = median_s(lambda c=captured: find_groups(propagate(c, x)))
        say(what="finding groups", layers=layers, seconds=seconds, groups=len(find_groups(propagate(captured, x))))
    for width in (16, 32, 64, 128):
        model = DeepResNet(3, width).eval()
        weights = sum(p.numel() for p in model.parameters())
        for granularity in ("channel", "element"):
            seconds = median_s(lambda m=model, g=granularity: prune(m, 0.5, granularity=g, example_inputs=x))
            say(what=f"prune, {granularity}", weights=weights, seconds=seconds, ns_a_weight=1e9 * seconds / weights)
    layer = LayerData(weight=torch.randn(1000, 1000), output_scale=torch.ones(1000))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = median_s(lambda: kernel(layer, KernelWeightsConfig()))
    extra = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e6
    say(what="kernel criterion", weights=1_000_000, seconds=seconds, extra_gb=extra)


if __name__ == "__main__":
    main()
