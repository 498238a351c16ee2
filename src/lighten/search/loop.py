"""compress: from a task and a budget to an artifact, a plan, a result and a report, in one folder."""

import json
import shutil
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lighten.errors import ArtifactError
from lighten.export import export
from lighten.graph.capture import capture
from lighten.graph.count import count_macs, count_parameters
from lighten.measurement import Latency, Measurement
from lighten.metric import Interval, Scores, paired_drop
from lighten.plan import Plan
from lighten.report import write_report
from lighten.runtime.backends import backend
from lighten.runtime.cpu import this_cpu, usable_cores
from lighten.runtime.folder import write_folder
from lighten.runtime.measure import LatencySample, Ratio, measure_latency, ratio_interval
from lighten.runtime.runner import load
from lighten.search.choose import Budget, choose, nearest, within
from lighten.search.sweep import Candidate, OnProgress, Progress, SweepConfig, representative_inputs, sweep
from lighten.task import Task, evaluate

RUNTIME = "onnxruntime"
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
    out_dir: str | Path,
    threads: int | None = None,
    batch: int = 1,
    seed: int = 0,
    sweep_config: SweepConfig | None = None,
    on_progress: OnProgress = lambda progress: None,
) -> Result:
    """Find the fastest (or smallest) version of task's model within the budget, and write it to out_dir.

    max_drop: in units of the metric. threads: of every measurement, None = every usable core. batch: samples a call
    that latency is measured with. sweep_config: what is tried; its seed and threads are overruled by the arguments.
    out_dir gets artifact/, plan.yaml, result.json and report.html, all at once or not at all. Where nothing meets the
    budget the nearest candidate is written, and the result says that it was not accepted.

    Raises:
        ConfigError, TaskError, CaptureError: bad settings, data or model. ArtifactError: out_dir holds other content,
        or cannot be written.
    """
    start = time.monotonic()
    budget = Budget(max_drop=max_drop, minimize=minimize, max_latency_ms=max_latency_ms, max_size_bytes=max_size_bytes)
    threads = threads or usable_cores()
    config = replace(sweep_config or SweepConfig(), seed=seed, threads=threads)
    out_dir = Path(out_dir).absolute()
    if out_dir.is_symlink() or out_dir.exists():
        _must_be_ours(out_dir)
    with tempfile.TemporaryDirectory(prefix="lighten-") as scratch:
        trial = _Trial(task, budget, config, batch, Path(scratch), on_progress)
        chosen, data = trial.run()
        data["wall_s"] = round(time.monotonic() - start, 1)
        plan = trial.plan_of(chosen)
        _write(out_dir, trial.path_of(chosen), plan, data)
    return Result(out_dir, data["accepted"], data["verdict"], plan, data)


@dataclass
class _Trial:
    """One run of compress; scratch holds the artifacts of the original and of every candidate."""

    task: Task
    budget: Budget
    config: SweepConfig
    batch: int
    scratch: Path
    tell: OnProgress

    def run(self) -> tuple[Candidate | None, dict[str, Any]]:
        """The chosen candidate (None = the original) and the content of result.json."""
        task, tell = self.task, self.tell
        tell(Progress(0, 1, "the original: lowering and scoring"))
        original = capture(task.model, task.example_inputs)
        export(original, task.example_inputs, self.baseline_path, threads=self.config.threads)
        baseline = evaluate(load(self.baseline_path), task.selection, task.metric, task.batch_size)
        candidates = list(sweep(task, baseline, self.config, self.budget.max_drop, self.scratch, tell))
        tell(Progress(1, 1, "timing every candidate"))
        baseline_latency, candidates = self._timed(candidates)
        base_objective = _baseline_objective(self.budget, baseline_latency, self.baseline_size)
        chosen = choose(candidates, self.budget, base_objective)
        admissible = chosen is not None
        if chosen is None:
            chosen = nearest(candidates, self.budget, base_objective)
        tell(Progress(1, 1, "confirming on holdout data"))
        before = evaluate(load(self.baseline_path), task.holdout, task.metric, task.batch_size)
        after = evaluate(load(self.path_of(chosen)), task.holdout, task.metric, task.batch_size)
        latency, ratio = self._time_the_winner(chosen)
        measured = {
            "baseline": self._measurement(before, latency["baseline"], None),
            "compressed": self._measurement(after, latency["compressed"], chosen),
        }
        drop = paired_drop(before, after)
        final = None if chosen is None else replace(chosen, drop=drop, latency=latency["compressed"])
        accepted = admissible and final is not None and within(final, self.budget)
        return chosen, {
            "task": task.name,
            "seed": self.config.seed,
            "accepted": accepted,
            "verdict": _verdict(self.budget, accepted, admissible, chosen, drop, ratio, measured, task.metric.name),
            "budget": {key: value for key, value in asdict(self.budget).items() if value is not None},
            **{key: value.to_dict() for key, value in measured.items()},
            "drop": _interval(drop),
            "speedup": ratio.value,
            "speedup_ci95": [ratio.low, ratio.high],
            "size_ratio": measured["baseline"].size_bytes / measured["compressed"].size_bytes,
            "trials": len(candidates),
            "candidates": [self._describe(c, c is chosen) for c in candidates],
            "environment": environment(self.config.threads),
        }

    @property
    def baseline_path(self) -> Path:
        return self.scratch / "baseline"

    @property
    def baseline_size(self) -> int:
        return load(self.baseline_path).artifact.size_bytes

    def path_of(self, candidate: Candidate | None) -> Path:
        """The artifact of candidate, None = the original's."""
        if candidate is None:
            return self.baseline_path
        assert candidate.path is not None
        return candidate.path

    def plan_of(self, candidate: Candidate | None) -> Plan:
        """What was done to it."""
        if candidate is None or candidate.plan is None:
            return Plan(threads=self.config.threads, seed=self.config.seed)
        return candidate.plan

    def _timed(self, candidates: list[Candidate]) -> tuple[LatencySample, list[Candidate]]:
        """A first look at all of them, taking turns with the original."""
        paths = {str(i): c.path for i, c in enumerate(candidates) if c.path is not None}
        found = measure_latency(
            {"baseline": self.baseline_path, **paths},
            representative_inputs(self.task, self.batch),
            threads=self.config.threads,
            processes=2,
        )
        timed = [replace(c, latency=found.get(str(i))) for i, c in enumerate(candidates)]
        return found["baseline"], timed

    def _time_the_winner(self, chosen: Candidate | None) -> tuple[dict[str, LatencySample], Ratio]:
        found = measure_latency(
            {"baseline": self.baseline_path, "compressed": self.path_of(chosen)},
            representative_inputs(self.task, self.batch),
            threads=self.config.threads,
        )
        return found, ratio_interval(found["baseline"], found["compressed"], seed=self.config.seed)

    def _measurement(self, scores: Scores, sample: LatencySample, candidate: Candidate | None) -> Measurement:
        original = self.task.model
        return Measurement(
            metric_name=self.task.metric.name,
            metric=scores.interval,
            n=scores.n,
            latency_ms=self._latency(sample),
            size_bytes=load(self.path_of(candidate)).artifact.size_bytes,
            n_params=count_parameters(original) if candidate is None else candidate.n_params,
            macs=count_macs(original, self.task.example_inputs) if candidate is None else candidate.macs,
        )

    def _latency(self, sample: LatencySample) -> Latency:
        return sample.to_latency(RUNTIME, self.config.threads, self.batch)

    def _describe(self, candidate: Candidate, chosen: bool) -> dict[str, Any]:
        about: dict[str, Any] = {
            "name": candidate.name,
            "ratio": candidate.ratio,
            "scheme": candidate.scheme,
            "within_budget": within(candidate, self.budget),
            "chosen": chosen,
            "note": candidate.note,
        }
        if candidate.scores is not None and candidate.latency is not None and candidate.drop is not None:
            about |= self._measurement(candidate.scores, candidate.latency, candidate).to_dict()
            about["drop"] = _interval(candidate.drop)
        return about


def environment(threads: int) -> dict[str, Any]:
    """What the figures depend on besides the model."""
    import platform

    cpu = this_cpu()
    runtime = backend(RUNTIME).describe()
    return {
        "cpu": cpu.name,
        "cores": cpu.cores,
        "instructions": [name for name in ("avx2", "avx512", "vnni", "amx", "neon_dotprod") if getattr(cpu, name)],
        "threads": threads,
        "runtime": runtime.name,
        "runtime_version": runtime.version,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "os": platform.platform(terse=True),
    }


def _baseline_objective(budget: Budget, latency: LatencySample, size_bytes: int) -> float:
    return latency.median if budget.minimize == "latency" else float(size_bytes)


def _interval(interval: Interval) -> dict[str, Any]:
    return {"value": interval.value, "ci95": [interval.low, interval.high]}


def _verdict(
    budget: Budget,
    accepted: bool,
    admissible: bool,
    chosen: Candidate | None,
    drop: Interval,
    ratio: Ratio,
    measured: dict[str, Measurement],
    metric: str,
) -> str:
    better = "faster" if budget.minimize == "latency" else "smaller"
    if chosen is None:
        return (
            f"Nothing that was tried is {better} than the original. The artifact is the original, lowered losslessly."
        )
    size_ratio = measured["baseline"].size_bytes / measured["compressed"].size_bytes
    pace = f"{ratio.value:.2f}× faster" if ratio.is_different else "no faster (the interval of the ratio includes 1)"
    what = f"{pace} and {size_ratio:.1f}× smaller, {metric} drop {drop.value:.4f} on holdout data"
    if accepted:
        return f"{chosen.name}: {what}, within the budget of {budget.max_drop:g}."
    if admissible:
        return (
            f"Not accepted: {chosen.name} met the budget on selection data but not on holdout: {what} "
            f"(budget {budget.max_drop:g})."
        )
    return f"Nothing within the budget (drop {budget.max_drop:g}) was {better}. The nearest: {chosen.name}: {what}."


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
