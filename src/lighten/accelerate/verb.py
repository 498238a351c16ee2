"""accelerate: the same outputs, sooner.

Every runtime × number of threads × memory layout is tried on the machine at hand, in processes of its own; what does
not agree with the model to float rounding is out; of the rest the fastest is written, with the table of all trials.
"""

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lighten.accelerate.drafts import Draft, retuned_draft, room, threaded, write_drafts
from lighten.accelerate.notes import blocks_notes, latency_notes, throughput_notes
from lighten.errors import ConfigError
from lighten.export.onnx import named_inputs
from lighten.export.verb import outputs_of, plan_of, tolerance_for
from lighten.graph.capture import CapturedModule, capture
from lighten.runtime.artifact import Artifact, must_be_replaceable, write_artifact
from lighten.runtime.contest import (
    FINALISTS,
    HOPELESS,
    Candidate,
    Trial,
    decide,
    look,
    must_have_some,
)
from lighten.runtime.cpu import usable_cores
from lighten.runtime.final import first_of_the_best
from lighten.runtime.spec import Array
from lighten.runtime.throughput import Crew, compare_crews, measure_throughput

if TYPE_CHECKING:
    from lighten.runtime.native.retune import Choice

Mode = Literal["latency", "throughput"]
MODES = ("latency", "throughput")
OnProgress = Callable[[str], None]


def accelerate(
    model: nn.Module,
    example_inputs: tuple[Any, ...],
    out_dir: str | Path,
    *,
    threads: int | None = None,
    mode: Mode = "latency",
    tolerance: float | None = None,
    on_progress: OnProgress = lambda doing: None,
) -> Artifact:
    """Write the fastest version of model that computes what model computes; a quantized module is welcome too.

    example_inputs: positional arguments of model, a batch of the size that matters; timing and comparison use them. A
    float tensor of one single number, such as zeros, is replaced by standard normal numbers: zeros agree too easily.
    mode: "latency" for one caller that waits, "throughput" for parallel processes (runtime/pool.py) that fill the
    machine. threads: of a process; None = whatever is fastest. tolerance: the largest root mean square difference of an
    output, relative to the output; None = what export allows. on_progress: told what is done next.

    The artifact's notes["accelerate"] hold every trial, refusals with their reasons, the winner's times, its speed-up
    over plain ONNX Runtime with a 95 % interval, and whether the machine was steady meanwhile. Takes half a minute to a
    few minutes.

    Raises:
        CaptureError: the model cannot be traced. ArtifactError: nothing runs and agrees (the message lists why), or
        out_dir holds something else or cannot be written. ConfigError: a bad mode, threads or tolerance.
    """
    if mode not in MODES:
        raise ConfigError(f"mode={mode!r} is unknown. Use one of {', '.join(MODES)}.")
    if threads is not None and not 1 <= threads <= 1024:
        raise ConfigError(f"threads={threads} is not between 1 and 1024. Leave it out to have the fastest number.")
    if tolerance is not None and not tolerance > 0:
        raise ConfigError(f"tolerance={tolerance} is not above 0. Float sums in another order differ by about 1e-6.")
    out_dir = Path(out_dir).absolute()
    must_be_replaceable(out_dir)
    example_inputs = telling(example_inputs)
    on_progress("tracing the model")
    captured = capture(model, example_inputs)
    plan = plan_of(model)
    with tempfile.TemporaryDirectory(prefix="lighten-") as scratch:
        on_progress("lowering it for every runtime")
        search = _Search(
            drafts=write_drafts(captured, example_inputs, plan, Path(scratch)),
            scratch=Path(scratch),
            inputs=[x.detach().numpy() for x in named_inputs(captured, example_inputs).values()],
            expected=[x.numpy() for x in outputs_of(model, example_inputs)],
            counts=room(threads),
            tolerance=tolerance_for(plan) if tolerance is None else tolerance,
            batch=_batch(captured, example_inputs),
            tell=on_progress,
        )
        winner, options, notes = search.latency() if mode == "latency" else search.throughput()
        return _copy(winner, out_dir, options, notes)


def lossless_baseline(
    model: nn.Module,
    example_inputs: tuple[Any, ...],
    out_dir: str | Path,
    *,
    threads: int,
    on_progress: OnProgress = lambda doing: None,
) -> Artifact:
    """The fastest lossless version of model on exactly `threads` threads: what a speed-up has to be a speed-up over.

    Raises:
        CaptureError, ArtifactError, ConfigError: see accelerate.
    """
    return accelerate(model, example_inputs, out_dir, threads=threads, on_progress=on_progress)


def telling(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """inputs, with standard normal numbers, always the same, in place of float tensors that hold one number only."""
    make = torch.Generator().manual_seed(0)

    def told(x: Any) -> Any:
        if not isinstance(x, Tensor) or not x.is_floating_point() or x.numel() < 2 or (x != x.flatten()[0]).any():
            return x
        return torch.randn(x.shape, generator=make).to(x.dtype)

    replaced = pytree.tree_map(told, inputs)
    assert isinstance(replaced, tuple)
    return replaced


@dataclass(kw_only=True)
class _Search:
    """drafts: also the retuned one, once it is there. choices: of blocks, where the native engine is retuned."""

    drafts: Sequence[Draft]
    scratch: Path
    inputs: Sequence[Array]
    expected: Sequence[Array]
    counts: Sequence[int]
    tolerance: float
    batch: int
    tell: OnProgress
    choices: "list[Choice]" = field(default_factory=list)

    def latency(self) -> tuple[Artifact, dict[str, Any], dict[str, Any]]:
        """The winner's draft, its options, and the notes."""
        trials = self._first_look()
        plain = threaded("onnxruntime", self.counts[-1])  # what export writes
        found = decide(
            trials,
            self.inputs,
            finalists=FINALISTS,
            always=[plain],
            on_round=lambda number: self.tell(f"timing the fastest side by side, round {number}"),
        )
        refused = [draft.refusal() for draft in self.drafts if draft.artifact is None]
        notes = latency_notes(found, refused, plain, self._by_path())
        options = {"threads": found.winner.candidate.threads}
        return self._artifact(found.winner.candidate), options, self._about("latency", notes)

    def throughput(self) -> tuple[Artifact, dict[str, Any], dict[str, Any]]:
        """As latency; the options say how many workers, too."""
        trials = self._first_look()
        cores = usable_cores()
        crews = {
            trial.candidate.name: Crew(
                path=trial.candidate.path,
                workers=max(1, cores // trial.candidate.threads),
                threads=trial.candidate.threads,
            )
            for trial in trials
        }

        def at_best_ms(trial: Trial) -> float:
            """A call, if workers did not get in each other's way."""
            return trial.median / crews[trial.candidate.name].workers

        able = sorted(must_have_some(trials), key=at_best_ms)
        plain = threaded("onnxruntime", self.counts[-1])
        slowest = HOPELESS * at_best_ms(able[0])
        finalists = {trial.candidate.name for trial in able[:FINALISTS] if at_best_ms(trial) <= slowest}
        finalists |= {trial.candidate.name for trial in able if trial.candidate.name == plain}
        self.tell("filling the machine with the fastest by turns")
        samples = compare_crews({name: crews[name] for name in crews if name in finalists}, self.inputs)
        name = first_of_the_best(samples)
        self.tell("measuring how the winner scales")
        crew = crews[name]
        scaling = measure_throughput(
            crew.path, self.inputs, n_samples=self.batch, threads=crew.threads, seconds=1.0, max_workers=crew.workers
        )
        winner = next(trial for trial in trials if trial.candidate.name == name)
        refused = [draft.refusal() for draft in self.drafts if draft.artifact is None]
        notes = throughput_notes(
            [*trials, *refused], winner, plain, self._by_path(), crews, samples, scaling, self.batch
        )
        options = {"threads": crew.threads, "workers": crew.workers}
        return self._artifact(winner.candidate), options, self._about("throughput", notes)

    def _first_look(self) -> list[Trial]:
        """A look at everything. Compiling takes longest and is tried once, in the layout and on the threads that suit
        eager best."""
        quick = [c for draft in self.drafts if not draft.is_compiled for c in draft.candidates(self.counts)]
        trials = self._with_retuned(self._look(quick))
        eager = [t for t in trials if not t.refused and self._by_path()[t.candidate.path].runtime == "torch"]
        if not eager:
            return trials
        best = min(eager, key=lambda trial: trial.median).candidate
        layout = self._by_path()[best.path].options["layout"]
        alike = [draft for draft in self.drafts if draft.is_compiled and draft.options["layout"] == layout]
        return trials + self._look([c for draft in alike for c in draft.candidates([best.threads])])

    def _with_retuned(self, trials: list[Trial]) -> list[Trial]:
        """trials, and after the native engine's those with the blocks that are the quickest here, where it may win and
        they are others."""
        mine = [trial for trial in trials if self._by_path()[trial.candidate.path].runtime == "native"]
        best, own = (min((trial.median for trial in some), default=float("inf")) for some in (trials, mine))
        if own > HOPELESS * best or own == float("inf"):
            return trials
        self.tell("timing each layer of the native engine with blocks of every size")
        draft = self._by_path()[mine[0].candidate.path]
        retuned, self.choices = retuned_draft(draft, self.batch, self.scratch / "retuned")
        if retuned is None:
            return trials
        self.drafts = [*self.drafts, retuned]
        after = trials.index(mine[-1]) + 1
        return [*trials[:after], *self._look(retuned.candidates(self.counts)), *trials[after:]]

    def _look(self, candidates: Sequence[Candidate]) -> list[Trial]:
        return look(
            candidates,
            self.inputs,
            self.expected,
            tolerance=self.tolerance,
            on_progress=lambda name: self.tell(f"a first look at {name}"),
        )

    def _by_path(self) -> dict[Path, Draft]:
        return {draft.artifact.path: draft for draft in self.drafts if draft.artifact is not None}

    def _artifact(self, candidate: Candidate) -> Artifact:
        artifact = self._by_path()[candidate.path].artifact
        assert artifact is not None
        return artifact

    def _about(self, mode: Mode, notes: dict[str, Any]) -> dict[str, Any]:
        return {
            "mode": mode,
            "batch": self.batch,
            "cores": usable_cores(),
            "tolerance": self.tolerance,
            "blocks": blocks_notes(self.choices),
            **notes,
        }


def _batch(captured: CapturedModule, example_inputs: tuple[Any, ...]) -> int:
    """Samples in example_inputs; 1 where the model knows no batch."""
    if not captured.batch_is_dynamic:
        return 1
    return next(int(x.shape[0]) for x in named_inputs(captured, example_inputs).values() if x.ndim)


def _copy(draft: Artifact, out_dir: Path, options: dict[str, Any], notes: dict[str, Any]) -> Artifact:
    """The very files that were measured, as an artifact in out_dir."""

    def write_files(folder: Path) -> None:
        for name in draft.files:
            shutil.copyfile(draft.path / name, folder / name)

    return write_artifact(
        out_dir,
        runtime=draft.runtime,
        options={**draft.options, **options},
        inputs=draft.inputs,
        outputs=draft.outputs,
        write_files=write_files,
        plan=draft.plan,
        notes={**draft.notes, "rms_difference": notes["difference"], "accelerate": notes},
    )
