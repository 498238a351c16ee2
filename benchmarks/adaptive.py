"""The front of a finished `lighten compress` beside hand-made pipelines of peers, on the same task and machine.

    lighten compress fashion-mnist --max-drop 0.01 --minimize latency --out OUT
    python benchmarks/adaptive.py fashion-mnist OUT [OUT …] [--ratios 0.3,0.5,0.65] [--epochs 12] [--nncf] [--keep DIR]

Peers: Torch-Pruning takes that share of the channels of every layer (magnitude of whole groups, its default importance,
counts rounded to 8), the network is trained again for the same number of epochs as our long trainings, in the same
loop with the same teacher, and runs in ONNX Runtime as float and as static int8 (onnxruntime's quantize_static, per
channel); --nncf adds nncf.quantize, run in OpenVINO. (pip install torch-pruning nncf; both want a venv of their own.)
All are timed side by side with the original and with ours, in processes of their own that take turns. Drops are on
holdout data, paired. A JSON line a point, then a table; the last column says how many points of ours are no slower and
drop no more. --keep: a folder for the peers' artifacts; those that are there are not made again, so that another batch
size takes no training.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from torch import nn

from lighten.export import export
from lighten.graph.capture import capture
from lighten.graph.count import count_macs
from lighten.metric import Scores, paired_drop
from lighten.recover.finetune import fine_tune
from lighten.runtime.artifact import Artifact, read_artifact, write_artifact
from lighten.runtime.cpu import usable_cores
from lighten.runtime.measure import measure_latency, ratio_interval
from lighten.search.config import SearchConfig
from lighten.search.realize import called_like, default_epochs, representative_inputs, training
from lighten.search.study import Study
from lighten.task import Task, batches, evaluate, load_task

MAY_LOSE = 1.5  # times max_drop: further points of ours are not worth their timing


def torch_pruned(task: Task, ratio: float, epochs: int) -> nn.Module:
    import copy

    import torch_pruning as tp

    model = copy.deepcopy(task.model).eval()
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1:]
    pruner = tp.pruner.MagnitudePruner(
        model, task.example_inputs, importance=tp.importance.GroupMagnitudeImportance(p=2), pruning_ratio=ratio,
        ignored_layers=last, round_to=8,
    )  # fmt: skip
    pruner.step()
    recipe = training(task, SearchConfig(), epochs)
    assert recipe is not None
    return fine_tune(model, task.train, task.loss, recipe, teacher=task.model)


def with_model(artifact: Artifact, folder: Path, runtime: str, proto: onnx.ModelProto) -> Path:
    """Another ONNX file with the same inputs and outputs, as an artifact."""

    def write_files(to: Path) -> None:
        (to / "model.onnx").write_bytes(proto.SerializeToString())

    write_artifact(
        folder, runtime=runtime, options={}, inputs=artifact.inputs, outputs=artifact.outputs, write_files=write_files
    )
    return folder


def static_int8(task: Task, artifact: Artifact, folder: Path) -> Path:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            name = artifact.inputs[0].name
            self.feeds = iter([{name: x.numpy()} for x in batches(task.calibration, task.batch_size)])

        def get_next(self) -> dict[str, Any] | None:
            return next(self.feeds, None)

    with tempfile.TemporaryDirectory() as scratch:
        to = Path(scratch) / "int8.onnx"
        quantize_static(
            artifact.path / "model.onnx", to, Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
        )  # fmt: skip
        return with_model(artifact, folder, "onnxruntime", onnx.load(to))


def nncf_int8(task: Task, artifact: Artifact, folder: Path) -> Path:
    import nncf

    name = artifact.inputs[0].name
    data = nncf.Dataset(list(batches(task.calibration, task.batch_size)), lambda x: {name: np.asarray(x)})
    quantized = nncf.quantize(onnx.load(artifact.path / "model.onnx"), data)
    return with_model(artifact, folder, "openvino", quantized)


def peers(task: Task, ratios: list[float], epochs: int, with_nncf: bool, folder: Path) -> dict[str, tuple[Path, str]]:
    """By name: the artifact, and how many times fewer its MACs are. What is in folder already is not made again."""
    found: dict[str, tuple[Path, str]] = {}
    for ratio in ratios:
        started, of_ratio = time.monotonic(), folder / f"{ratio}, {epochs} epochs"
        if not (of_ratio / "macs").is_file():
            model = torch_pruned(task, ratio, epochs)
            export(model, task.example_inputs, of_ratio / "float", threads=usable_cores())
            fewer = count_macs(task.model, task.example_inputs) / count_macs(model, task.example_inputs)
            (of_ratio / "macs").write_text(f"{fewer:.2f}")
        artifact, macs = read_artifact(of_ratio / "float"), (of_ratio / "macs").read_text()
        name = f"Torch-Pruning {ratio:.0%}, {epochs} epochs"
        found[f"{name}, ONNX Runtime float"] = artifact.path, macs
        found[f"{name}, ONNX Runtime int8"] = _once(of_ratio / "int8", partial(static_int8, task, artifact)), macs
        if with_nncf:
            found[f"{name}, NNCF int8 in OpenVINO"] = _once(of_ratio / "nncf", partial(nncf_int8, task, artifact)), macs
        print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr)
    return found


def _once(folder: Path, make: Callable[[Path], Path]) -> Path:
    return folder if folder.is_dir() else make(folder)


def front(task: Task, out: Path, baseline: Scores) -> dict[str, Path]:
    """The candidates of a search that drop little enough, by name, or what a plan gave that was done again.

    baseline: scores on selection data.
    """
    limit = MAY_LOSE * json.loads((out / "result.json").read_text())["budget"]["max_drop"]
    folder = out.with_name(out.name + ".search")
    if not folder.is_dir():
        artifact = read_artifact(out / "artifact")
        return {f"{out.name}, {artifact.plan.epochs} epochs": artifact.path}
    found = Study(folder, {"task": task.name}, resume=True)
    return {
        c.name: c.path
        for c in found.all_finished(task.metric, baseline)
        if c.path is not None and c.drop is not None and c.drop.value <= limit
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task")
    parser.add_argument("out", type=Path, nargs="+", help="what compress wrote; OUT.search is read where it is")
    parser.add_argument("--ratios", default="0.3,0.5,0.65")
    parser.add_argument("--epochs", type=int, help="of each peer's training; default: those of our long ones")
    parser.add_argument("--nncf", action="store_true")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="where the peers' artifacts are kept; default: nowhere")
    options = parser.parse_args()
    task = load_task(options.task)
    captured = capture(task.model, task.example_inputs)

    def on_holdout(folder: Path) -> Scores:
        return evaluate(called_like(captured, folder), task.holdout, task.metric, task.batch_size)

    with tempfile.TemporaryDirectory(prefix="lighten-") as scratch:
        config = SearchConfig()
        epochs = options.epochs or config.long_factor * default_epochs(task, config)
        ratios = [float(x) for x in options.ratios.split(",") if x]
        original = export(task.model, task.example_inputs, Path(scratch) / "original", threads=usable_cores())
        base = on_holdout(original.path)
        selection = evaluate(task.model, task.selection, task.metric, task.batch_size)
        ours = {name: path for out in options.out for name, path in front(task, out, selection).items()}
        theirs = peers(task, ratios, epochs, options.nncf, options.keep or Path(scratch) / "peers")
        paths = {"the original": original.path, **ours, **{name: path for name, (path, _) in theirs.items()}}
        samples = measure_latency(
            paths, representative_inputs(task, captured, options.batch), threads=usable_cores(), processes=3
        )
        rows = []
        for name, path in paths.items():
            drop = paired_drop(base, on_holdout(path))
            ratio = ratio_interval(samples["the original"], samples[name])
            rows.append(
                {
                    "name": name, "is_ours": name in ours, "ms": samples[name].median, "faster": ratio.value,
                    "faster_ci95": [ratio.low, ratio.high], "drop": drop.value, "drop_ci95": [drop.low, drop.high],
                    "size_bytes": read_artifact(path).size_bytes, "fewer_macs": theirs.get(name, (path, None))[1],
                }
            )  # fmt: skip
            print(json.dumps(rows[-1]), flush=True)
    print(
        "\n| candidate | ms | faster (95 %) | drop on holdout (95 %) | kB | ours that are as good in both |\n|"
        + "---|" * 6
    )
    for row in sorted(rows, key=lambda r: r["ms"]):
        better = [r for r in rows if r["is_ours"] and r["ms"] <= row["ms"] and r["drop"] <= row["drop"]]
        low, high = row["faster_ci95"]
        print(
            f"| {row['name']} | {row['ms']:.4f} | {row['faster']:.2f}× ({low:.2f} to {high:.2f}) | {row['drop']:.4f} "
            f"({row['drop_ci95'][0]:.4f} to {row['drop_ci95'][1]:.4f}) | {row['size_bytes'] / 1000:.0f} "
            f"| {'' if row['is_ours'] else len(better) or 'none'} |"
        )


if __name__ == "__main__":
    main()
