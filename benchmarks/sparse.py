"""Pruned networks and single layers on the native engine and on its peers: one JSON line a contender.

    python benchmarks/sparse.py [--network resnet20] [--threads 1] [--batch 1] [--zeros 0.9] [--pattern block:4x1]

Every contender runs in processes of its own that take turns (lighten's measure_latency). "dense" is ONNX Runtime on the
network before pruning, whose time zeros do not change; peers run the last of the pruned networks. A speed-up is over
dense, with its 95 % interval. --table adds the rows of a Markdown table.
Weights are random: time does not depend on their values, but on where the zeros are, and those fall by magnitude.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
import lighten
from lighten.errors import LightenError
from lighten.runtime.artifact import write_artifact
from lighten.runtime.cpu import this_cpu
from lighten.runtime.measure import measure_latency, ratio_interval
from lighten.tasks.networks import ResNet20, SeedNet
from networks import CRNN, mobilenet, settle_, vit

NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "conv64": (lambda: nn.Conv2d(64, 64, 3, padding=1), (64, 28, 28)),
    "conv128": (lambda: nn.Conv2d(128, 128, 3, padding=1), (128, 14, 14)),
    "conv256": (lambda: nn.Conv2d(256, 256, 3, padding=1), (256, 14, 14)),
    "seed": (SeedNet, (1, 32, 32)),
    "resnet20": (lambda: ResNet20(3), (3, 32, 32)),
    "resnet20-wide": (lambda: ResNet20(3, (64, 128, 256)), (3, 32, 32)),
    "mobilenet": (mobilenet, (3, 128, 128)),
    "vit": (vit, (3, 64, 64)),
    "crnn": (CRNN, (1, 32, 128)),  # its LSTM runs in ONNX Runtime
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet20,resnet20-wide,mobilenet,vit,conv64,conv128,conv256")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--batch", default="1,8")
    parser.add_argument("--zeros", default="0,0.7,0.8,0.9,0.95")
    parser.add_argument("--pattern", default="element,block:4x1")
    parser.add_argument(
        "--peers", default="openvino,torch", help="besides ONNX Runtime; torch-compile needs a compiler"
    )
    parser.add_argument("--processes", type=int, default=5)
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    print(json.dumps({"cpu": asdict(this_cpu())}), flush=True)
    for name in args.network.split(","):
        for batch in map(int, args.batch.split(",")):
            for threads in map(int, args.threads.split(",")):
                case(name, batch, threads, args)


def case(name: str, batch: int, threads: int, args: argparse.Namespace) -> None:
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    x = torch.randn(batch, *shape)
    model = settle_(make(), x)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        contenders = {"dense": written(model, x, folder / "dense", "onnxruntime")}
        for pattern in args.pattern.split(","):
            for zeros in map(float, args.zeros.split(",")):
                pruned = pruned_to(model, x, zeros, pattern)
                label = f"{pattern} {zeros:g}"
                contenders[f"native {label}"] = written(pruned, x, folder / f"native {label}", "native")
        for peer in filter(None, args.peers.split(",")):
            contenders[peer] = written(pruned, x, folder / peer, peer)
        found = {key: path for key, path in contenders.items() if path is not None}
        samples = measure_latency(found, [x.numpy()], threads=threads, processes=args.processes, blocks=4)
    rows = []
    for key, sample in samples.items():
        ratio = ratio_interval(samples["dense"], sample)
        about = {"network": name, "batch": batch, "threads": threads, "contender": key}
        times = {"median_ms": sample.median, "p90_ms": sample.p90, "load_ms": sample.start_up.load_ms}
        print(json.dumps({**about, **times, "speedup": ratio.value, "ci95": [ratio.low, ratio.high]}), flush=True)
        cells = (key, f"{sample.median:.3f}", f"{ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f})")
        rows.append(f"| {name}, batch {batch}, {threads} threads | {' | '.join(cells)} |")
    if args.table:
        print("\n".join(rows), flush=True)


def pruned_to(model: nn.Module, x: Tensor, zeros: float, pattern: str) -> nn.Module:
    if not zeros:
        return model
    return lighten.prune(model, zeros, granularity=pattern, importance="l2", scope="layer", example_inputs=(x,))


def written(model: nn.Module, x: Tensor, folder: Path, runtime: str) -> Path | None:
    try:
        artifact = lighten.export(model, (x,), folder, runtime=runtime.removesuffix("-compile"))
    except LightenError as error:
        print(json.dumps({"runtime": runtime, "refused": str(error)}), flush=True)
        return None
    if not runtime.endswith("-compile"):
        return folder
    about = {k: getattr(artifact, k) for k in ("inputs", "outputs", "plan")}
    files = {name: (folder / name).read_bytes() for name in artifact.files}
    compiled = folder.with_name(runtime + " compiled")

    def write_files(to: Path) -> None:
        for name, content in files.items():
            (to / name).write_bytes(content)

    write_artifact(compiled, runtime="torch", options={"mode": "compile"}, write_files=write_files, **about)
    return compiled


if __name__ == "__main__":
    main()
