"""`lighten quantize TASK`: quantize the task's model, save or export it, and say what it cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from lighten.cli.before_after import score_both_, table_of_both
from lighten.cli.console import Format, FormatOption, print_json, stderr

if TYPE_CHECKING:
    from torch import nn

    from lighten.graph.capture import CapturedModule
    from lighten.task import Task


def quantize(
    task: Annotated[str, typer.Argument(metavar="TASK", help="A built-in task, or file.py[:name] holding a Task.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Where the quantized model goes.")],
    scheme: Annotated[
        str, typer.Option(help="w8a8, w8a8-dynamic, w4-g128, nf4, …; 'w4-g128; head=w8' where layers differ.")
    ],
    method: Annotated[
        str | None, typer.Option(help="How weights are rounded: rtn, hqq, gptq, adaround, …", show_default="rtn")
    ] = None,
    observer: Annotated[
        str | None, typer.Option(help="How ranges of activations are chosen: minmax, percentile, …", show_default="mse")
    ] = None,
    step: Annotated[
        list[str] | None, typer.Option(help="Before rounding: equalization, smoothquant or bias-correction.")
    ] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Layers to leave alone, as a shell pattern.")] = None,
    weight_bits: Annotated[
        int | None, typer.Option(help="No weight's code is wider; default: 7 where 8-bit products saturate.")
    ] = None,
    runtime: Annotated[
        str | None,
        typer.Option(help="Write an artifact for this runtime instead of a model to go on with in PyTorch."),
    ] = None,
    data: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of the task's data files.")] = None,
    output: FormatOption = Format.TEXT,
) -> None:
    """Quantize TASK's model with its calibration data, write it to DIR, and say what it cost."""
    from lighten.checkpoint.writer import check_folder, save
    from lighten.export.lower import must_be_known
    from lighten.quantize import quantize as run
    from lighten.quantize.assignment import parse_assignment
    from lighten.runtime.artifact import must_be_replaceable
    from lighten.task import batches, load_task

    parse_assignment(scheme)  # before a task trains or downloads anything
    if runtime is None:
        check_folder(out.absolute())
    else:
        must_be_known(runtime)
        must_be_replaceable(out.absolute())
    loaded = load_task(task, **({} if data is None else {"data": data}))
    with stderr.status(loaded.name) as line:
        quantized = run(
            loaded.model,
            scheme,
            method=method,
            calibration=batches(loaded.calibration, loaded.batch_size),
            example_inputs=loaded.example_inputs,
            exclude=exclude or (),
            observer=observer,
            weight_bits=weight_bits,
            steps=step or (),
            on_progress=lambda doing: line.update(f"{loaded.name}: {doing}"),
        )
        line.update(f"{loaded.name}: writing")
        if runtime is None:
            save(quantized, out, example_inputs=loaded.example_inputs)
        else:
            from lighten.export import export

            export(quantized, loaded.example_inputs, out, runtime=runtime)
        line.update(f"{loaded.name}: measuring")
        result = _result(loaded, quantized, out)
    if output is Format.JSON:
        print_json(result)
        return
    stderr.print(_table(result))
    for layer, reason in quantized.plan.skipped.items():
        stderr.print(f"{layer}: {reason}", markup=False, highlight=False)
    if quantized.plan.weight_bits_because is not None:
        bits = f"weights have {quantized.plan.weight_bits or weight_bits} bits: {quantized.plan.weight_bits_because}"
        stderr.print(bits, markup=False, highlight=False)
    stderr.print(f"saved: {out}", markup=False, highlight=False, soft_wrap=True)


def _result(task: Task, quantized: CapturedModule, out: Path) -> dict[str, Any]:
    plan = quantized.plan
    result: dict[str, Any] = {
        "task": task.name,
        "scheme": plan.scheme,
        "method": plan.method,
        "observer": plan.observer,
        "steps": plan.steps,
        "weight_bits": plan.weight_bits,
        "weight_bits_because": plan.weight_bits_because,
        "layers": {name: {"scheme": layer.scheme, "method": layer.method} for name, layer in plan.layers.items()},
        "before": {"tensor_bytes": _bytes(task.model)},
        "after": {"tensor_bytes": _bytes(quantized), "files_bytes": _bytes_of_files(out)},
        "skipped": plan.skipped,
        "out": str(out),
    }
    score_both_(result, task, quantized)
    return result


def _bytes(model: nn.Module) -> int:
    """Of parameters and buffers; a tied one counts once."""
    tensors = {tensor.data_ptr(): tensor for tensor in (*model.parameters(), *model.buffers())}
    return sum(tensor.nbytes for tensor in tensors.values())


def _bytes_of_files(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def _table(result: dict[str, Any]) -> Table:
    title = f"{result['task']}: {result['scheme']} by {result['method']}, {len(result['layers'])} layers"
    drawn = table_of_both(title, result)
    before, after = result["before"], result["after"]
    sizes = before["tensor_bytes"], after["tensor_bytes"]
    drawn.add_row("bytes of tensors", *(f"{size:,}" for size in sizes), f"{sizes[0] / max(1, sizes[1]):.2f}× smaller")
    return drawn
