"""Integer networks on Fashion-MNIST: accuracy on the 10,000 test images after each way to quantize ResNet-20.

    python benchmarks/quantize_static.py                      every case: a JSON line each, then a table
    python benchmarks/quantize_static.py --case "adaround w4a8"
    python benchmarks/quantize_static.py --limit 2000         the first test images only

Needs the network of `lighten train fashion-mnist`. All are calibrated on the same 512 training images. "qat" trains on
--epochs epochs. In w4a4 the first and the last layer have 8 bits. The peer "onnxruntime" is its quantize_static, QDQ,
one scale a channel, min-max ranges, on the same float ONNX file; it has no weights of fewer than 8 bits here. Accuracy
of ours is of the integer network in PyTorch, which is that of the artifact (tests/quantize/test_deployment.py).
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Subset

from lighten.export.onnx import to_onnx
from lighten.quantize import quantize
from lighten.quantize.qat import finish, prepare
from lighten.recover.finetune import FineTuneConfig, fine_tune
from lighten.task import Task, batches, evaluate, load_task

W4A4 = "w4a4; conv1=w8a8; fc=w8a8"
SCHEMES = {"w8a8": "w8a8", "w4a8": "w4a8", "w4a4": W4A4}
METHODS = ("rtn", "mse", "adaround", "gptq", "rtn+bias", "mse+bias", "adaround+bias")
CASES = [
    "float float",
    "onnxruntime w8a8",
    "rtn w8a8",
    *(f"{method} {scheme}" for scheme in ("w4a8", "w4a4") for method in METHODS),
    *("qat w4a8", "qat w4a4"),
]


def calibration(task: Task) -> list[Any]:
    return list(batches(task.calibration, 128))


def ours(task: Task, method: str, scheme: str) -> Callable[[Tensor], Tensor]:
    name, _, step = method.partition("+")
    steps = ("bias-correction",) if step else ()
    return quantize(task.model, SCHEMES[scheme], method=name, calibration=calibration(task), steps=steps)


def trained(task: Task, scheme: str, epochs: int, images: int) -> Callable[[Tensor], Tensor]:
    assert task.train is not None
    assert task.loss is not None
    prepared = prepare(task.model, SCHEMES[scheme], calibration=calibration(task))
    data = Subset(task.train, range(min(images, len(task.train))))  # type: ignore[arg-type]
    recipe = FineTuneConfig(epochs=epochs, lr=0.01, batch_size=128, distill_weight=0.5)

    def tell(step: Any) -> None:
        if step.step % 50 == 0:
            print(f"step {step.step} of {step.n_steps}, loss {step.loss:.4f}", file=sys.stderr, flush=True)

    return finish(fine_tune(prepared, data, task.loss, recipe, teacher=task.model, on_step=tell))


def by_onnxruntime(task: Task) -> Callable[[Tensor], Tensor]:
    import onnxruntime as ort
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self, name: str) -> None:
            self.left: Iterator[Any] = iter([{name: x.numpy()} for x in calibration(task)])

        def get_next(self) -> Any:
            return next(self.left, None)

    with tempfile.TemporaryDirectory() as folder:
        source, ready, target = (str(Path(folder) / f"{stem}.onnx") for stem in ("float", "ready", "int8"))
        proto = to_onnx(task.model, task.example_inputs)
        Path(source).write_bytes(proto.SerializeToString())
        quant_pre_process(source, ready)
        name = proto.graph.input[0].name
        quantize_static(
            ready,
            target,
            Reader(name),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        session = ort.InferenceSession(target, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


def run(case: str, limit: int, epochs: int, images: int) -> dict[str, object]:
    method, scheme = case.split()
    task = load_task("fashion-mnist")
    start = time.perf_counter()
    made: Callable[[Tensor], Tensor] = task.model
    if method == "onnxruntime":
        made = by_onnxruntime(task)
    elif method == "qat":
        made = trained(task, scheme, epochs, images)
    elif method != "float":
        made = ours(task, method, scheme)
    seconds = time.perf_counter() - start
    scores = evaluate(made, Subset(task.holdout, range(limit)), task.metric, 250)
    found = {"case": case, "method": method, "scheme": scheme, "accuracy": round(scores.interval.value, 4), "n": limit}
    return {**found, "seconds": round(seconds, 1), "steps": epochs * (images // 128) if method == "qat" else 0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, help="this one alone, in this process")
    parser.add_argument("--limit", type=int, default=10_000, help="test images")
    parser.add_argument("--epochs", type=int, default=1, help="of training, for qat")
    parser.add_argument("--images", type=int, default=55_000, help="training images, for qat")
    given = parser.parse_args()
    if given.case:
        print(json.dumps(run(given.case, given.limit, given.epochs, given.images)), flush=True)
        return
    rows = []
    for case in CASES:
        options = ["--case", case]
        for name in ("limit", "epochs", "images"):
            options += [f"--{name}", str(getattr(given, name))]
        done = subprocess.run([sys.executable, __file__, *options], check=True, stdout=subprocess.PIPE, text=True)
        print(done.stdout, end="", flush=True)
        rows.append(json.loads(done.stdout))
    exact = next(row["accuracy"] for row in rows if row["method"] == "float")
    print("\n| scheme | method | accuracy | drop in points |\n|---|---|---|---|")
    for row in rows:
        drop = 100 * (exact - row["accuracy"])
        print(f"| {row['scheme']} | {row['method']} | {100 * row['accuracy']:.2f} % | {drop:.2f} |")


if __name__ == "__main__":
    main()
