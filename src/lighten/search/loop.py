"""compress: from a task and a budget to an artifact, a plan, a result and a report, in one folder."""

import json
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lighten.errors import ArtifactError
from lighten.graph.capture import capture
from lighten.metric import Scores, paired_drop
from lighten.plan import Plan
from lighten.report import write_report
from lighten.runtime.cpu import usable_cores
from lighten.runtime.folder import write_folder
from lighten.runtime.measure import measure_latency, ratio_interval
from lighten.search.choose import Budget, choose, judgeable, nearest, objective, within
from lighten.search.outcome import describe, describe_budget, environment, interval_data, measurement, verdict
from lighten.search.sweep import (
    Candidate,
    OnProgress,
    Progress,
    SweepConfig,
    called_like,
    lower_original,
    representative_inputs,
    sweep,
)
from lighten.task import Task, evaluate

FILES = {"artifact", "plan.yaml", "result.json", "report.html"}


@dataclass(frozen=True)
class Result:
    """path: the folder. accepted: whether the budget is met on holdout data. verdict: a sentence. data: result.json."""

    path: Path
    accepted: bool
    verdict: str
    plan: Plan
    data: dict[str, Any]


def compress(
    task: Task,
    *,
    max_drop: float,
    minimize: str = "latency",
    max_latency_ms: float | None = None,
    max_size_bytes: int | None = None,
    accept: str = "interval",
    out_dir: str | Path,
    threads: int | None = None,
    batch: int = 1,
    seed: int = 0,
    sweep_config: SweepConfig | None = None,
    on_progress: OnProgress = lambda progress: None,
) -> Result:
    """Find the fastest (or smallest) version of task's model within the budget, and write it to out_dir.

    max_drop: in units of the metric. accept: what has to be within it on selection data, the upper end of the drop's
    one-sided 95 % "interval" or the "point" estimate; on holdout data, which is looked at once, it is the estimate.
    threads: of every measurement, None = every usable core. batch: samples a call that latency is measured with.
    sweep_config: what is tried; its seed and threads are overruled by the arguments. out_dir gets artifact/, plan.yaml,
    result.json and report.html, all at once or not at all. Where nothing meets the budget the nearest candidate is
    written, and the result says that it was not accepted.

    Raises:
        ConfigError, TaskError, CaptureError: bad settings, data or model. ArtifactError: out_dir holds other content,
        or cannot be written.
    """
    start = time.monotonic()
    budget = Budget(
        max_drop=max_drop,
        minimize=minimize,
        max_latency_ms=max_latency_ms,
        max_size_bytes=max_size_bytes,
        accept=accept,
    )
    config = replace(sweep_config or SweepConfig(), seed=seed, threads=threads or usable_cores())
    out_dir = Path(out_dir).absolute()
    if out_dir.is_symlink() or out_dir.exists():
        _must_be_ours(out_dir)
    with tempfile.TemporaryDirectory(prefix="lighten-") as scratch:
        chosen, data = _search(task, budget, config, batch, Path(scratch), on_progress)
        assert chosen.path is not None
        assert chosen.plan is not None
        data["wall_s"] = round(time.monotonic() - start, 1)
        _write(out_dir, chosen.path, chosen.plan, data)
    return Result(out_dir, data["accepted"], data["verdict"], chosen.plan, data)


def _search(
    task: Task, budget: Budget, config: SweepConfig, batch: int, scratch: Path, tell: OnProgress
) -> tuple[Candidate, dict[str, Any]]:
    """The candidate to ship, which may be the original, and the content of result.json."""
    tell(Progress(0, 1, "the original: lowering and scoring"))
    original = lower_original(task, config, scratch)
    assert original.scores is not None
    inputs = representative_inputs(task, batch)
    candidates = list(sweep(task, original.scores, config, budget.max_drop, scratch, tell))

    budget, doubt = judgeable(candidates, budget)

    tell(Progress(1, 1, "timing every candidate"))
    original, *candidates = _timed([original, *candidates], inputs, config.threads)
    limit = objective(original, budget)
    best = choose(candidates, budget, limit)
    chosen = best or nearest(candidates, budget, limit) or original

    tell(Progress(1, 1, "confirming on holdout data"))
    before, after = (_on_holdout(task, candidate) for candidate in (original, chosen))
    drop = paired_drop(before, after)
    final = measure_latency({"original": _path(original), "chosen": _path(chosen)}, inputs, threads=config.threads)
    ratio = ratio_interval(final["original"], final["chosen"], seed=config.seed)
    baseline = measurement(original, before, final["original"], config.threads, batch)
    compressed = measurement(chosen, after, final["chosen"], config.threads, batch)
    confirmed = within(replace(chosen, drop=drop, latency=final["chosen"]), replace(budget, accept="point"))
    is_better = ratio.low > 1 if budget.minimize == "latency" else chosen.size_bytes < original.size_bytes
    accepted = best is not None and confirmed and is_better
    return chosen, {
        "task": task.name,
        "seed": config.seed,
        "accepted": accepted,
        "verdict": verdict(
            budget, original, chosen, admissible=best is not None, accepted=accepted, drop=drop, ratio=ratio
        )
        + (f" {doubt}" if doubt else ""),
        "budget": describe_budget(budget),
        "baseline": baseline.to_dict(),
        "compressed": compressed.to_dict(),
        "drop": interval_data(drop),
        "speedup": ratio.value,
        "speedup_ci95": [ratio.low, ratio.high],
        "size_ratio": original.size_bytes / chosen.size_bytes,
        "trials": len(candidates),
        "candidates": [describe(c, budget, c is chosen, config.threads, batch) for c in candidates],
        "environment": environment(compressed.latency_ms.runtime, config.threads),
    }


def _timed(candidates: list[Candidate], inputs: Mapping[str, Any], threads: int) -> list[Candidate]:
    """A first look at all of them, taking turns."""
    paths = {str(i): c.path for i, c in enumerate(candidates) if c.path is not None}
    found = measure_latency(paths, inputs, threads=threads, processes=2)
    return [replace(c, latency=found.get(str(i))) for i, c in enumerate(candidates)]


def _on_holdout(task: Task, candidate: Candidate) -> Scores:
    run = called_like(capture(task.model, task.example_inputs), _path(candidate))
    return evaluate(run, task.holdout, task.metric, task.batch_size)


def _path(candidate: Candidate) -> Path:
    assert candidate.path is not None
    return candidate.path


def _write(out_dir: Path, artifact: Path, plan: Plan, data: dict[str, Any]) -> None:
    def fill(folder: Path) -> None:
        shutil.copytree(artifact, folder / "artifact")
        plan.save(folder / "plan.yaml")
        (folder / "result.json").write_text(json.dumps(data, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        write_report(data, plan, folder / "report.html")

    try:
        write_folder(out_dir, fill, _must_be_ours)
    except OSError as error:
        raise ArtifactError(
            f"Cannot write '{out_dir}': {error.strerror or error}. What was there before is untouched. "
            "Free the space or fix the permission, then try again."
        ) from error


def _must_be_ours(folder: Path) -> None:
    """Allow an earlier result, or an empty folder, to be replaced; nothing else."""
    if folder.is_symlink() or not folder.is_dir():
        raise ArtifactError(f"'{folder}' exists and is not a folder. Choose another --out.")
    found = {path.name for path in folder.iterdir()}
    if found and found != FILES:
        foreign = sorted(found - FILES) or sorted(FILES - found)
        raise ArtifactError(
            f"'{folder}' exists with other content ({', '.join(foreign[:5])}), and is left alone. "
            "Choose another --out, or empty it first."
        )
