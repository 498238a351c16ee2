"""Pruned networks and single layers on the native engine and on its peers: one JSON line a contender.

    python benchmarks/sparse.py [--network resnet20] [--threads 1] [--batch 1] [--zeros 0.9] [--pattern block:4x1]
                                [--weights w8]

Every contender runs in processes of its own that take turns (lighten's measure_workers). "dense" is ONNX Runtime on the
network before pruning, whose time zeros do not change; peers run the last of the pruned networks, and `difference` is
how far their outputs are from the native engine's, over the largest. A speed-up is over dense, with its 95 % interval.
--table adds the rows of a Markdown table. --cold compiles anew in every process, so that load_ms is a first load's.

Depthwise convolutions stay dense: they have few weights, and need all of them. Weights are random but in
mobilenetv2-imagenet and minilm: time does not depend on their values, but on where the zeros are, and those fall by
magnitude. See csr_peer.py for torch-csr, and deepsparse_peer.py for DeepSparse, which needs --deepsparse-python.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from csr_peer import use_csr_
from deepsparse_peer import MODEL, make_older_
from torch import Tensor, nn

import lighten
from lighten.errors import LightenError
from lighten.export.lower import VALUES
from lighten.runtime.artifact import read_artifact, write_artifact
from lighten.runtime.cpu import this_cpu
from lighten.runtime.measure import LatencySample, inputs_file, measure_workers, ratio_interval
from lighten.runtime.timed import Worker
from lighten.runtime.torch_graph import load_graph
from lighten.tasks.networks import ResNet20, SeedNet
from networks import CRNN, minilm, mlp, mobilenet, mobilenetv2_imagenet, settle_, stacked, vit


@dataclass(frozen=True)
class Network:
    """shape: of a sample. n_tokens: of a vocabulary, where inputs are tokens. is_trained: others need statistics."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    n_tokens: int | None = None
    is_trained: bool = False

    def example(self, batch: int) -> Tensor:
        size = (batch, *self.shape)
        return torch.randn(size) if self.n_tokens is None else torch.randint(self.n_tokens, size)


NETWORKS = {
    "conv64": Network(lambda: nn.Conv2d(64, 64, 3, padding=1), (64, 28, 28)),
    "conv128": Network(lambda: nn.Conv2d(128, 128, 3, padding=1), (128, 14, 14)),
    "conv256": Network(lambda: nn.Conv2d(256, 256, 3, padding=1), (256, 14, 14)),
    "conv64-of-8": Network(lambda: stacked(64), (64, 28, 28)),  # a layer as it is in a network
    "conv128-of-8": Network(lambda: stacked(128), (128, 14, 14)),
    "conv256-of-8": Network(lambda: stacked(256), (256, 14, 14)),
    "linear": Network(lambda: nn.Linear(4096, 4096), (4096,)),
    "seed": Network(SeedNet, (1, 32, 32)),
    "resnet20": Network(lambda: ResNet20(3), (3, 32, 32)),
    "resnet20-wide": Network(lambda: ResNet20(3, (64, 128, 256)), (3, 32, 32)),
    "mobilenet": Network(mobilenet, (3, 128, 128)),
    "mobilenetv2-imagenet": Network(mobilenetv2_imagenet, (3, 224, 224), is_trained=True),
    "vit": Network(vit, (3, 64, 64)),
    "crnn": Network(CRNN, (1, 32, 128)),  # its LSTM runs in ONNX Runtime
    "mlp": Network(mlp, (784,)),
    "minilm": Network(minilm, (128,), n_tokens=30522, is_trained=True),
}
HERE = Path(__file__).resolve().parent
# Of a process that runs a peer: benchmarks/ for the peer itself, src/ for what it shares with lighten's own worker.
PEER_PATH = os.pathsep.join([str(HERE), str(Path(lighten.__file__).parents[1])])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet20,resnet20-wide,mobilenet,vit,conv64,conv128,conv256")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--batch", default="1,8")
    parser.add_argument("--zeros", default="0,0.7,0.8,0.9,0.95")
    parser.add_argument("--pattern", default="element,block:4x1")
    parser.add_argument("--weights", default="float32", help="float32, bfloat16, or schemes of quantize: w8, w4, …")
    parser.add_argument(
        "--peers",
        default="openvino,torch",
        help="besides ONNX Runtime; also torch-csr, torch-compile, which needs a compiler, and deepsparse",
    )
    parser.add_argument("--deepsparse-python", help="an interpreter that has DeepSparse, see deepsparse_peer.py")
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--processes", type=int, default=5)
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    print(json.dumps({"cpu": asdict(this_cpu())}), flush=True)
    for name in args.network.split(","):
        for batch in map(int, args.batch.split(",")):
            for threads in map(int, args.threads.split(",")):
                case(name, batch, threads, args)


def case(name: str, batch: int, threads: int, args: argparse.Namespace) -> None:
    network = NETWORKS[name]
    torch.manual_seed(0)
    x = network.example(batch)
    model = network.make().eval() if network.is_trained else settle_(network.make(), x)
    with tempfile.TemporaryDirectory() as scratch, inputs_file([x.numpy()]) as inputs:
        folder = Path(scratch)
        contenders = {"dense": written(model, x, folder / "dense", "onnxruntime")}
        for pattern in args.pattern.split(","):
            for zeros in map(float, args.zeros.split(",")):
                pruned = pruned_to(model, x, zeros, pattern)
                for weights in args.weights.split(","):
                    last = f"native {pattern} {zeros:g}" + f" {weights}" * (weights != "float32")
                    contenders[last] = written(pruned, x, folder / last, "native", weights)
        for peer in filter(None, args.peers.split(",")):
            contenders[peer] = written(pruned, x, folder / peer, peer)
        start = {
            key: partial(begin, key, path, inputs, threads, args)
            for key, path in contenders.items()
            if path is not None and can_begin(key, path, inputs, threads, args)
        }
        samples = measure_workers(start, processes=args.processes, blocks=4)
    rows = []
    for key, sample in samples.items():
        ratio = ratio_interval(samples["dense"], sample)
        about = {"network": name, "batch": batch, "threads": threads, "contender": key}
        times = {"median_ms": sample.median, "p90_ms": sample.p90, "load_ms": sample.start_up.load_ms}
        speed = {"speedup": ratio.value, "ci95": [ratio.low, ratio.high]}
        far = {"difference": difference(sample, samples[last])} if key in args.peers.split(",") else {}
        print(json.dumps({**about, **times, **speed, **far}), flush=True)
        cells = (key, f"{sample.median:.3f}", f"{ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f})")
        rows.append(f"| {name}, batch {batch}, {threads} threads | {' | '.join(cells)} |")
    if args.table:
        print("\n".join(rows), flush=True)


def begin(key: str, path: Path, inputs: Path, threads: int, args: argparse.Namespace) -> Worker:
    process: dict[str, Any] = {}
    if key in ("deepsparse", "torch-csr"):
        process = {
            "module": key.removeprefix("torch-").split("-")[0] + "_peer",
            "environment": {"PYTHONPATH": PEER_PATH},
        }
    if key == "deepsparse":
        process["python"] = args.deepsparse_python
    if args.cold:
        with tempfile.TemporaryDirectory() as empty:
            process["environment"] = {**process.get("environment", {}), "LIGHTEN_CACHE": empty}
            return Worker(key, path, inputs, threads, **process)
    return Worker(key, path, inputs, threads, **process)


def can_begin(key: str, path: Path, inputs: Path, threads: int, args: argparse.Namespace) -> bool:
    """Whether a peer loads and runs what it was given; if not, that is said."""
    if key not in args.peers.split(","):
        return True
    try:
        begin(key, path, inputs, threads, args).close()
    except LightenError as error:
        print(json.dumps({"contender": key, "refused": str(error)}), flush=True)
        return False
    return True


def difference(a: LatencySample, b: LatencySample) -> float:
    pairs = zip(a.outputs, b.outputs, strict=True)
    return max(float(np.abs(x - y).max() / np.abs(y).max()) for x, y in pairs)


def pruned_to(model: nn.Module, x: Tensor, zeros: float, pattern: str) -> nn.Module:
    if not zeros:
        return model
    depthwise = [
        name for name, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.groups == m.in_channels > 1
    ]
    return lighten.prune(
        model, zeros, granularity=pattern, importance="l2", scope="layer", example_inputs=(x,), exclude=depthwise
    )


def written(model: nn.Module, x: Tensor, folder: Path, runtime: str, weights: str = "float32") -> Path | None:
    exported = {"deepsparse": "onnxruntime", "torch-csr": "torch", "torch-compile": "torch"}.get(runtime, runtime)
    values = weights if weights in VALUES else "float32"
    try:
        if weights not in VALUES:
            model = lighten.quantize(model, weights, example_inputs=(x,))
        lighten.export(model, (x,), folder, runtime=exported, values=values)
    except LightenError as error:
        print(json.dumps({"runtime": runtime, "refused": str(error)}), flush=True)
        return None
    if runtime == "deepsparse":
        make_older_(folder / MODEL)
    if runtime == "torch-csr":
        sparse, dense = use_csr_(load_graph(folder), [x])
        print(json.dumps({"contender": runtime, "sparse": len(sparse), "dense": dense}), flush=True)
    return to_compile(folder) if runtime == "torch-compile" else folder


def to_compile(folder: Path) -> Path:
    """The same artifact, run through torch.compile."""
    artifact = read_artifact(folder)
    about = {key: getattr(artifact, key) for key in ("inputs", "outputs", "plan")}
    compiled = folder.with_name(f"{folder.name} compiled")

    def write_files(to: Path) -> None:
        for name in artifact.files:
            (to / name).write_bytes((folder / name).read_bytes())

    write_artifact(compiled, runtime="torch", options={"mode": "compile"}, write_files=write_files, **about)
    return compiled


if __name__ == "__main__":
    main()
