"""`lighten prune TASK`: prune the task's model, fine-tune it along the way, and save it for going on in PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from lighten.cli.before_after import score_both_, table_of_both
from lighten.cli.console import Format, FormatOption, print_json, stderr

if TYPE_CHECKING:
    from torch import nn

    from lighten.graph.capture import CapturedModule
    from lighten.prune.gradual import PruneStep
    from lighten.recover.finetune import FineTuneConfig, Step
    from lighten.task import Task


def prune(
    task: Annotated[str, typer.Argument(metavar="TASK", help="A built-in task, or file.py[:name] holding a Task.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Where the pruned model goes.")],
    ratio: Annotated[float | None, typer.Option(help="Share that goes, in [0, 1).")] = None,
    granularity: Annotated[
        str | None, typer.Option(help="channel, head, layer, element, 2:4, block:4x1, …", show_default="channel")
    ] = None,
    importance: Annotated[
        str | None, typer.Option(help="The criterion: l2, taylor, kernel, sparsegpt, …", show_default="l2")
    ] = None,
    scope: Annotated[
        str | None, typer.Option(help="global, layer, for weights erk, for channels macs.", show_default="global")
    ] = None,
    schedule: Annotated[
        str | None, typer.Option(help="one-shot, iterative:n, cubic:n or gradual:n.", show_default="one-shot")
    ] = None,
    round_to: Annotated[
        int | None, typer.Option(help="Channel counts that are left are multiples of this.", show_default="1")
    ] = None,
    min_keep: Annotated[
        int | None, typer.Option(help="At least so many channels of each layer stay.", show_default="1")
    ] = None,
    override: Annotated[
        list[str] | None, typer.Option(metavar="LAYERS=RATIO", help="A ratio of its own, by a shell pattern.")
    ] = None,
    refit: Annotated[
        bool | None, typer.Option(help="Fit layers that lost inputs to their former outputs.", show_default="no-refit")
    ] = None,
    plan: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Take these settings from a plan.yaml; options overrule it.")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=0, help="Of fine-tuning after each step, or of gradual:n as a whole; default: 1.")
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate of fine-tuning.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Layers to leave alone, as a shell pattern.")] = None,
    data: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of the task's data files.")] = None,
    seed: Annotated[int, typer.Option(help="Of fine-tuning.")] = 0,
    output: FormatOption = Format.TEXT,
) -> None:
    """Prune TASK's model to a ratio along a schedule, save it to DIR, and say what it cost."""
    from lighten.checkpoint.writer import check_folder, contents, save
    from lighten.prune.gradual import prune_gradually
    from lighten.task import load_task

    settings = _settings(
        plan,
        ratio=ratio,
        granularity=granularity,
        importance=importance,
        scope=scope,
        schedule=schedule,
        round_to=round_to,
        min_keep=min_keep,
        overrides=_overrides(override),
        exclude=exclude,
        refit=refit,
    )
    loaded = load_task(task, **({} if data is None else {"data": data}))
    check_folder(out.absolute())
    recipe = _recipe(loaded, epochs, lr, seed)
    columns: list[Any] = [TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("left")]
    with Progress(*columns, TimeRemainingColumn(), console=stderr, transient=True) as bar:
        line = bar.add_task("pruning", total=None)

        def on_prune(step: PruneStep) -> None:
            contents(step.model)  # what cannot be saved should say so before hours of fine-tuning
            doing = f"step {step.step}/{step.n_steps}: {step.ratio:.1%} pruned"
            bar.update(line, description=doing, completed=0, total=None)

        def on_step(step: Step) -> None:
            bar.update(line, completed=step.step, total=step.n_steps)

        pruned = prune_gradually(
            loaded,
            fine_tuning=recipe,
            on_step=on_step,
            on_prune=on_prune,
            **settings,
        )
        save(pruned, out)
        bar.update(line, description="measuring", total=None)
        result = _result(loaded, pruned, out)
    if output is Format.JSON:
        print_json(result)
        return
    stderr.print(_table(result))
    for layer, reason in pruned.plan.skipped.items():
        stderr.print(f"{layer}: {reason}", markup=False, highlight=False)
    stderr.print(f"saved: {out}", markup=False, highlight=False, soft_wrap=True)


def _settings(plan: Path | None, **given: Any) -> dict[str, Any]:
    """The arguments of prune_gradually: the plan's, overruled by the options that were given."""
    from lighten.plan import Plan
    from lighten.prune.gradual import recipe_of

    if plan is None and given["ratio"] is None:
        raise typer.BadParameter("say how much goes, for example --ratio 0.5, or give a --plan.", param_hint="--ratio")
    known = {} if plan is None else recipe_of(Plan.load(plan))
    return known | {name: value for name, value in given.items() if value is not None}


def _overrides(given: list[str] | None) -> dict[str, float] | None:
    found = {}
    for text in given or ():
        layers, equals, ratio = text.rpartition("=")
        try:
            found[layers] = float(ratio)
        except ValueError:
            equals = ""
        if not equals or not layers:
            raise typer.BadParameter(f"'{text}' is not LAYERS=RATIO, as in 'layer3*=0.7'.", param_hint="--override")
    return found or None


def _recipe(task: Task, epochs: int | None, lr: float | None, seed: int) -> FineTuneConfig | None:
    from lighten.errors import TaskError
    from lighten.recover.finetune import FineTuneConfig

    if task.train is None:
        if epochs:
            raise TaskError(
                f"Task '{task.name}' has no training data: --epochs {epochs} is impossible. Use --epochs 0."
            )
        return None
    if epochs == 0:
        return None
    rate = {} if lr is None else {"lr": lr}
    return FineTuneConfig(epochs=epochs or 1, seed=seed, batch_size=min(128, len(task.train)), **rate)  # type: ignore[arg-type]


def _result(task: Task, pruned: CapturedModule, out: Path) -> dict[str, Any]:
    result: dict[str, Any] = {
        "task": task.name,
        "ratio": pruned.plan.ratio,
        "granularity": pruned.plan.granularity,
        "schedule": pruned.plan.schedule,
        "importance": pruned.plan.importance,
        "scope": pruned.plan.scope,
        "epochs": pruned.plan.epochs,
        "before": _size(task, task.model),
        "after": _size(task, pruned),
        "skipped": pruned.plan.skipped,
        "out": str(out),
    }
    score_both_(result, task, pruned)
    return result


def _size(task: Task, model: nn.Module) -> dict[str, Any]:
    from lighten.graph.count import count_macs, count_parameters

    weights = [p for p in model.parameters() if p.ndim > 1]
    zeros = sum(int((w == 0).sum()) for w in weights)
    return {
        "n_params": count_parameters(model),
        "macs": count_macs(model, task.example_inputs),
        "sparsity": zeros / max(1, sum(w.numel() for w in weights)),
    }


def _table(result: dict[str, Any]) -> Table:
    drawn = table_of_both(f"{result['task']}: {result['ratio']:.1%} pruned by {result['importance']}", result)
    before, after = result["before"], result["after"]
    for name, key in (("parameters", "n_params"), ("MACs a sample", "macs")):
        drawn.add_row(name, f"{before[key]:,}", f"{after[key]:,}", f"{before[key] / max(1, after[key]):.2f}× fewer")
    drawn.add_row("sparsity", f"{before['sparsity']:.1%}", f"{after['sparsity']:.1%}", "")
    return drawn
