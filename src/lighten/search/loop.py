"""compress: from a task and a budget to an artifact, a plan, a result and a report, in one folder."""

import json
import shutil
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lighten.errors import ArtifactError, ConfigError, LightenError
from lighten.graph.capture import capture
from lighten.metric import Interval, paired_drop
from lighten.plan import Plan
from lighten.report import write_report
from lighten.runtime.cpu import usable_cores
from lighten.runtime.device import DeviceProfile, load_profile
from lighten.runtime.folder import write_folder
from lighten.search.adapt import Search
from lighten.search.candidate import Candidate, compared
from lighten.search.choose import Budget, choose, judgeable, nearest, objective, within
from lighten.search.clock import Clock, DescribedClock, MeasuringClock, schemes_for
from lighten.search.config import SearchConfig
from lighten.search.driver import Driver, OnProgress, Progress
from lighten.search.outcome import (
    describe,
    describe_budget,
    environment,
    interval_data,
    measurement,
    parts,
    shortfall,
    verdict,
)
from lighten.search.pool import Pool
from lighten.search.realize import lower_original, ranked, realize, representative_inputs, scored, variant_of
from lighten.search.sanity import check_metric, fingerprint
from lighten.search.space import look_at
from lighten.search.study import Study
from lighten.search.workers import Workers
from lighten.task import Task

FILES = {"artifact", "plan.yaml", "result.json", "report.html"}
RUNTIMES = ("onnxruntime", "openvino", "native")
PORTABLE = ("onnxruntime",)  # what a device that is not here is given


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
    config: SearchConfig | None = None,
    plan: Plan | None = None,
    pick: str | None = None,
    work_dir: str | Path | None = None,
    storage: str | None = None,
    resume: bool = False,
    workers: int | None = None,
    ray: str | None = None,
    target_label: str | None = None,
    device: str | Path | DeviceProfile | None = None,
    on_progress: OnProgress = lambda progress: None,
) -> Result:
    """Find the fastest (or smallest) version of task's model within the budget, and write it to out_dir.

    max_drop: in units of the metric. accept: what has to be within it on selection data, the upper end of the drop's
    one-sided 95 % "interval" or the "point" estimate; on holdout data, which is looked at once, it is the estimate.
    threads: of every measurement, None = every usable core. batch: samples a call that latency is measured with.
    config: what the search may do; its seed, threads and batch are overruled by the arguments. plan: instead of a
    search, do again what this plan says. out_dir gets artifact/, plan.yaml, result.json and report.html, all at once or
    not at all. Where nothing meets the budget the nearest candidate is written, and the result says that it was not
    accepted.

    work_dir: where trials are kept, None = out_dir + ".search" beside out_dir. storage: of the Optuna study, None = a
    file there. resume: go on with the search that is there, without losing a finished trial; accept, max_latency_ms
    and, where bytes do not count, max_drop may be others than before. pick: the name of one of its candidates; it is
    written to out_dir instead of the best, and nothing is searched.

    workers: trials at once, each in a process of its own with its share of the cores; None = one, in this process.
    What is found does not depend on it, as far as trainings do not depend on the number of threads. ray: the address
    of a Ray cluster, whose nodes do the trials (extra `ray`); workers is then one a node by default. target_label: the
    custom resource of the nodes there that latency is measured on; None = this machine.

    device: hardware that is not here, a profile or its name or file. Then every latency, max_latency_ms included, is
    what the roofline model predicts for it, nothing is measured, candidates are dense, and the artifact is an ONNX
    file.

    Raises:
        ConfigError, TaskError, CaptureError: bad settings, data or model, or no cluster. MissingExtraError: Ray is not
        installed. ArtifactError: out_dir holds other content,
        or cannot be written, or a trial that is kept is damaged.
    """
    start = time.monotonic()
    budget = Budget(
        max_drop=max_drop,
        minimize=minimize,
        max_latency_ms=max_latency_ms,
        max_size_bytes=max_size_bytes,
        accept=accept,
    )
    out_dir = Path(out_dir).absolute()
    if out_dir.is_symlink() or out_dir.exists():
        _must_be_ours(out_dir)
    work_dir = Path(work_dir).absolute() if work_dir is not None else out_dir.with_name(out_dir.name + ".search")
    profile = device if device is None or isinstance(device, DeviceProfile) else load_profile(device)
    if profile is not None and target_label is not None:
        raise ConfigError(f"Latency is of '{profile.name}' or of nodes with '{target_label}'. Give one of them.")
    if plan is not None and (pick is not None or resume):
        raise ConfigError("A plan is done again without a search: give it without pick and resume.")
    with tempfile.TemporaryDirectory(prefix="lighten-") as scratch, _crew(task, workers, ray, target_label) as crew:
        threads = threads or crew.at_target(usable_cores)
        config = replace(config or SearchConfig(), seed=seed, threads=threads, batch=batch)
        if profile is not None:
            config = replace(config, device=profile, schemes=schemes_for(profile, config.schemes))
        run = _Run(crew, budget, config, Path(scratch), on_progress, start + config.time_limit_s)
        if plan is not None:
            found, stopped = run.replayed(plan), ""
        else:
            same = fingerprint(task, config)
            # Of the budget only what trials depend on: under another one the search goes on with those that are there.
            about = {"task": task.name, "minimize": budget.minimize, "max_drop of fewer bits": budget.narrow_to, **same}
            if pick is not None:  # by any budget
                about = {"task": task.name, "weights": same["weights"]}
                # What was predicted for it is kept with the trials; time on this machine is measured anew.
                about |= {} if profile is None else {"device": same["device"]}
            study = Study(work_dir, about, storage=storage, resume=resume or pick is not None)
            found, stopped = (run.kept(study), "") if pick is not None else run.searched(study)
        chosen, data = run.confirmed(found, stopped, pick)
        assert chosen.path is not None
        assert chosen.plan is not None
        data["wall_s"] = round(time.monotonic() - start, 1)
        _write(out_dir, chosen.path, chosen.plan, data)
    return Result(out_dir, data["accepted"], data["verdict"], chosen.plan, data)


def _crew(task: Task, workers: int | None, ray: str | None, target_label: str | None) -> Workers:
    if workers is not None and workers < 1:
        raise ConfigError(f"workers={workers} is below 1.")
    if ray is not None:
        from lighten.search.cluster import Cluster  # brings Ray, which is an extra

        return Cluster(task, ray, workers, target_label)
    if target_label is not None:
        raise ConfigError(f"There are labels on a cluster only: target_label='{target_label}' needs ray=ADDRESS too.")
    return Workers(task) if workers in (None, 1) else Pool(task, workers)


class _Run:
    """One call of compress.

    original: the best lossless version, by what is minimized. whole_ms: of each runtime that can run the model; unable:
    why the others cannot.
    """

    def __init__(
        self,
        workers: Workers,
        budget: Budget,
        config: SearchConfig,
        scratch: Path,
        tell: OnProgress,
        deadline: float,
    ) -> None:
        self.task = task = workers.task
        self.workers, self.budget, self.config, self.scratch = workers, budget, config, scratch
        self.tell, self.deadline = tell, deadline
        tell(Progress(0, 1, "the original: lowering and scoring"))
        # Before any lowering: what cannot be traced is said as such, not as a runtime's refusal.
        self.captured = capture(task.model, task.example_inputs)
        check_metric(task)
        self.unable: dict[str, str] = {}
        lowered: dict[str, Candidate] = {}
        for runtime in RUNTIMES if config.device is None else PORTABLE:
            try:
                lowered[runtime] = lower_original(task, config, runtime, scratch / f"original-{runtime}")
            except LightenError as error:
                self.unable[runtime] = str(error)
        if not lowered:
            raise ArtifactError(f"No runtime can run the model: {self.unable}")
        inputs = representative_inputs(task, self.captured, config.batch)
        self.clock: Clock = DescribedClock() if config.device else MeasuringClock(workers, inputs, config.threads)
        looks = self.clock.times(lowered, processes=2)
        self.whole_ms = {runtime: sample.median for runtime, sample in looks.items()}
        self._lowered = lowered

    def searched(self, study: Study) -> tuple[list[Candidate], str]:
        """The candidates of a search, and why it stopped early, or ""."""
        self._settle(study)
        size = self.budget.minimize == "size"
        whole = {name: float(self._lowered[name].size_bytes) if size else ms for name, ms in self.whole_ms.items()}
        assert self.original.scores is not None
        driver = Driver(
            task=self.task,
            budget=self.budget,
            config=self.config,
            study=study,
            baseline=self.original.scores,
            cost=float(self.original.size_bytes) if size else self.whole_ms[self.best],
            workers=self.workers,
            tell=self.tell,
            deadline=self.deadline,
        )
        search = Search(driver=driver, whole=whole)
        with driver.searching():
            if self.config.is_listed:
                search.listed()
            else:
                search.adaptive(look_at(self.workers, self.config, driver.part(0.0), self._kinds()))
        return driver.candidates, driver.stopped

    def kept(self, study: Study) -> list[Candidate]:
        """The candidates of all trials that are finished."""
        self._settle(study)
        assert self.original.scores is not None
        return study.all_finished(self.task.metric, self.original.scores)

    def replayed(self, plan: Plan) -> list[Candidate]:
        """The candidate that plan describes.

        Raises:
            ConfigError: it cannot be done again, or failed.
        """
        self._settle(None)
        assert self.original.scores is not None

        def tell(share: float, doing: str) -> None:
            self.tell(Progress(share, 1, doing))

        variant = variant_of(plan)
        found = realize(self.task, self.original.scores, variant, self.config, self.scratch / "plan", tell)
        if failed := [candidate.note for candidate in found if candidate.path is None]:
            raise ConfigError(f"The plan cannot be done again: {failed[0]}")
        return found

    def confirmed(
        self, candidates: list[Candidate], stopped: str, pick: str | None
    ) -> tuple[Candidate, dict[str, Any]]:
        """The candidate to ship, which may be the original, and the content of result.json."""
        task, config, tell = self.task, self.config, self.tell
        budget, doubt = judgeable(candidates, self.budget)
        tell(Progress(1, 1, "timing every candidate"))
        original, *candidates = self._timed([self.original, *candidates])
        limit = objective(original, budget)
        best = choose(candidates, budget, limit) if pick is None else _picked(candidates, pick)
        chosen = best or nearest(candidates, budget, limit) or original
        assert chosen.plan is not None

        tell(Progress(1, 1, "confirming on holdout data"))
        before, after = (scored(task, self.captured, _path(c), task.holdout) for c in (original, chosen))
        drop = paired_drop(before, after)
        final = self.clock.times({"original": original, "chosen": chosen})
        ratio = self.clock.ratio(final["original"], final["chosen"], config.seed)
        baseline = measurement(original, before, final["original"], config)
        compressed = measurement(chosen, after, final["chosen"], config)
        confirmed = within(replace(chosen, drop=drop, latency=final["chosen"]), replace(budget, accept="point"))
        is_better = ratio.low > 1 if budget.minimize == "latency" else chosen.size_bytes < original.size_bytes
        admissible = best is not None and within(best, budget)
        accepted = admissible and confirmed and is_better
        said = verdict(
            budget,
            original,
            chosen,
            admissible=admissible,
            accepted=accepted,
            drop=drop,
            ratio=ratio,
            device=config.device,
        )
        more = [doubt, "" if admissible else shortfall(candidates, budget)]
        more.append(f"The search was {stopped}; this is the best so far." if stopped else "")
        return chosen, {
            "task": task.name,
            "seed": config.seed,
            "accepted": accepted,
            "verdict": " ".join([said, *(text for text in more if text)]),
            "budget": describe_budget(budget),
            "device": None if config.device is None else config.device.to_dict(),
            "baseline": baseline.to_dict(),
            "compressed": compressed.to_dict(),
            "drop": interval_data(drop),
            "speedup": ratio.value,
            "speedup_ci95": [ratio.low, ratio.high],
            "size_ratio": original.size_bytes / chosen.size_bytes,
            "trials": len(candidates),
            "stopped": stopped,
            "original_ms": {**self.whole_ms, **self.unable},
            "channels_ranked_by": asdict(ranked(self.captured, task.example_inputs, config)),
            "candidates": [describe(c, budget, c is chosen, config) for c in candidates],
            "workers": self.workers.n,
            "lost_workers": self.workers.lost,
            "environment": {
                **self.workers.at_target(environment, chosen.plan.runtime, config.threads),
                **parts(_path(chosen)),
            },
        }

    def _settle(self, study: Study | None) -> None:
        """Fix the times of the original, as they were when the search began, and with them which runtime it is for."""
        if study is not None:
            self.whole_ms = study.once("original_ms", lambda: self.whole_ms)
        able = {runtime: ms for runtime, ms in self.whole_ms.items() if runtime in self._lowered}
        self.whole_ms = able
        sizes = {runtime: self._lowered[runtime].size_bytes for runtime in able}
        self.best = min(
            able, key=lambda runtime: able[runtime] if self.budget.minimize == "latency" else sizes[runtime]
        )
        original = self._lowered[self.best]
        scores = scored(self.task, self.captured, _path(original), self.task.selection)
        self.original = replace(compared(original, scores, scores), drop=Interval(0.0, 0.0, 0.0), drop_bound=0.0)

    def _kinds(self) -> tuple[str, ...]:
        return ("channels", "zeros") if "native" in self.whole_ms else ("channels",)

    def _timed(self, candidates: list[Candidate]) -> list[Candidate]:
        """A first look at all of them, taking turns."""
        found = self.clock.times({str(i): c for i, c in enumerate(candidates)}, processes=2)
        return [replace(c, latency=found.get(str(i))) for i, c in enumerate(candidates)]


def _picked(candidates: list[Candidate], name: str) -> Candidate:
    able = [candidate for candidate in candidates if candidate.path is not None]
    for candidate in able:
        if candidate.name == name:
            return candidate
    raise ConfigError(f"There is no candidate '{name}' in that search. There are: {'; '.join(c.name for c in able)}.")


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
