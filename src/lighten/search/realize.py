"""The sweep: a few pruning ratios × {float, int8}, and a few shares of zeros in blocks, each recovered, lowered and
scored.

The first, plain search: every candidate is a real artifact, and what is known of it was measured on it. Accuracy comes
from selection data through the candidate's own runtime; time from processes that take turns.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from lighten.errors import ConfigError, LightenError, require
from lighten.export import export
from lighten.export.lower import lower
from lighten.export.onnx import named_inputs
from lighten.graph.capture import CapturedModule, capture
from lighten.graph.count import count_macs, count_parameters
from lighten.metric import Interval, Scores, paired_drop
from lighten.plan import Plan
from lighten.prune.gradual import PruneStep, prune_gradually
from lighten.quantize import quantize
from lighten.quantize.scheme import parse_scheme
from lighten.recover.finetune import FineTuneConfig, bfloat16_pays, takes_channels_last
from lighten.runtime.cpu import int8_saturates, this_cpu
from lighten.runtime.measure import LatencySample
from lighten.runtime.runner import load
from lighten.task import Task, as_args, batches, evaluate

DEFAULT_RATIOS = (0.0, 0.25, 0.5, 0.625, 0.75, 0.875)
# Zeros in blocks that the native engine leaves out, reached in small steps while the rest is trained.
DEFAULT_SPARSITIES = (0.7, 0.8, 0.9)
BLOCK = "block:4x1"
SPARSITY_SCHEDULE = "gradual:20"
# A short fine-tune is at least this many steps: three epochs of a large set, more of a small one.
MIN_STEPS = 400
MIN_EPOCHS = 3
MAX_BATCH = 128
MIN_STEPS_AN_EPOCH = 20


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """ratios: ascending shares of every layer's channels to remove. schemes: None = float. round_to: see lighten.prune.

    sparsities: ascending shares of zeros, of networks on the native engine, and sparse_schemes of their weights, which
    make the file smaller and nothing faster: of two that run the same code, timing may call either the faster.
    epochs: of fine-tuning, None = as many as make MIN_STEPS steps, at least MIN_EPOCHS. lr, distill_weight: of
    fine-tuning; the original model teaches.
    """

    ratios: tuple[float, ...] = DEFAULT_RATIOS
    schemes: tuple[str | None, ...] = (None, "w8a8")
    sparsities: tuple[float, ...] = DEFAULT_SPARSITIES
    sparse_schemes: tuple[str | None, ...] = ("w8",)
    importance: str = "l2"
    round_to: int = 8
    epochs: int | None = None
    lr: float = 0.1
    distill_weight: float = 0.5
    seed: int = 0
    threads: int = 1

    def __post_init__(self) -> None:
        for name in ("ratios", "sparsities"):
            shares = getattr(self, name)
            if list(shares) != sorted(set(shares)) or not all(0 <= share < 1 for share in shares):
                raise ConfigError(f"{name}={shares} must be ascending numbers in [0, 1). Try 0.25, 0.5, 0.75.")
        if not self.ratios and not self.sparsities:
            raise ConfigError("There are neither ratios nor sparsities, so nothing to try. Try ratios=(0.25, 0.5).")
        if self.epochs is not None and self.epochs < 1:
            raise ConfigError(f"epochs={self.epochs} is below 1. Leave it out for a default by the size of the data.")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One trial. ratio: share of the channels that went; sparsity: of the weights that are zero.

    path: its artifact, None if it failed, and then note says why. scores: on selection data. drop: from them, with its
    95 % interval; drop_bound: the end of the one-sided one, which the drop does not exceed.
    """

    name: str
    ratio: float
    scheme: str | None
    sparsity: float = 0.0
    n_params: int = 0
    macs: int = 0
    path: Path | None = None
    size_bytes: int = 0
    plan: Plan | None = None
    scores: Scores | None = None
    drop: Interval | None = None
    drop_bound: float = math.inf
    latency: LatencySample | None = None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What is trained once: ratio of the channels gone, then sparsity of the weights zero; lowered in each scheme."""

    ratio: float = 0.0
    sparsity: float = 0.0
    schemes: tuple[str | None, ...] = (None,)

    @property
    def name(self) -> str:
        """For the report, without the scheme."""
        if self.sparsity:
            return f"{100 * self.sparsity:g} % zeros in blocks of 4×1"
        return f"{100 * (1 - self.ratio):g} % of channels"

    def trials(self) -> list[Candidate]:
        """A candidate for each scheme, of which nothing is known yet."""
        return [
            Candidate(name=f"{self.name}, {scheme or 'float'}", ratio=self.ratio, scheme=scheme, sparsity=self.sparsity)
            for scheme in self.schemes
        ]


@dataclass(frozen=True)
class Progress:
    """What the sweep is doing: done of total units of work, and a sentence."""

    done: float
    total: float
    doing: str


OnProgress = Callable[[Progress], None]


def lower_original(task: Task, config: SweepConfig, folder: Path) -> Candidate:
    """The original, lowered losslessly: what every candidate is compared with.

    Raises:
        CaptureError, TaskError: the model cannot be lowered, or the metric cannot score it.
    """
    model = capture(task.model, task.example_inputs)
    model.plan = replace(model.plan, threads=config.threads, seed=config.seed)
    artifact = export(model, task.example_inputs, folder / "original", threads=config.threads)
    scores = evaluate(called_like(model, artifact.path), task.selection, task.metric, task.batch_size)
    return Candidate(
        name="the original",
        ratio=0.0,
        scheme=None,
        n_params=count_parameters(model),
        macs=count_macs(model, task.example_inputs),
        path=artifact.path,
        size_bytes=artifact.size_bytes,
        plan=model.plan,
        scores=scores,
        drop=Interval(0.0, 0.0, 0.0),
        drop_bound=0.0,
    )


def sweep(
    task: Task, baseline: Scores, config: SweepConfig, max_drop: float, folder: Path, tell: OnProgress
) -> Iterator[Candidate]:
    """Build every candidate in a folder of its own below folder; they come as they are ready.

    baseline: the original's scores on selection data. A candidate that cannot be built comes with a note instead of a
    path. Once all of a variant drop more than max_drop with their whole intervals, larger ones are not tried, and say
    so.
    """
    paths, recipe = _variants(config), _recipe(task, config)
    done, total = 0, sum(len(variant.schemes) for path in paths for variant in path)
    for path in paths:
        reason = _unfit_for_native(task) if path and path[0].sparsity else ""
        for variant in path:
            if reason:
                yield from (replace(trial, note=reason) for trial in variant.trials())
            else:
                found = []
                part = partial(_tell_part, tell, done, len(variant.schemes), total)
                for candidate in _realized(task, baseline, variant, config, recipe, folder, part):
                    found.append(candidate)
                    yield candidate
                changed = variant.ratio or variant.sparsity
                if changed and all(c.drop is not None and c.drop.low > max_drop for c in found):
                    reason = f"not tried: {found[-1].name} already drops too much, with its whole interval"
            done += len(variant.schemes)


def _variants(config: SweepConfig) -> tuple[list[Variant], ...]:
    """Paths of ever more compression."""
    # All channels in float is the original itself, which is the baseline already.
    channels = [
        Variant(ratio=ratio, schemes=tuple(scheme for scheme in config.schemes if ratio or scheme is not None))
        for ratio in config.ratios
    ]
    zeros = [Variant(sparsity=sparsity, schemes=config.sparse_schemes) for sparsity in config.sparsities]
    return channels, zeros


def _realized(
    task: Task,
    baseline: Scores,
    variant: Variant,
    config: SweepConfig,
    recipe: FineTuneConfig | None,
    folder: Path,
    tell: Callable[[float, str], None],
) -> Iterator[Candidate]:
    """variant's candidates, trained and lowered, or with a note why not. tell: share of the work, and a sentence."""
    trials = variant.trials()
    tell(0.0, f"{variant.name}: pruning and fine-tuning" if variant.ratio or variant.sparsity else "the original")
    try:
        model = _recovered(task, variant, config, recipe, lambda share: tell(0.8 * share, ""))
    except LightenError as error:
        yield from (replace(trial, note=str(error)) for trial in trials)
        return
    for i, trial in enumerate(trials):
        tell(0.8 + 0.2 * i / len(trials), f"{trial.name}: lowering and scoring")
        yield _lowered(task, baseline, model, trial, config, folder / _folder_name(trial))


def called_like(model: CapturedModule, artifact: Path) -> Callable[..., Any]:
    """The artifact as a function of the positional arguments that model, or the one it came from, takes."""
    runner = load(artifact)
    return lambda *inputs: runner(named_inputs(model, inputs))


def representative_inputs(task: Task, batch: int) -> dict[str, Any]:
    """The first `batch` calibration samples by the names that every artifact of the task gives them, as arrays."""
    model = capture(task.model, task.example_inputs)
    named = named_inputs(model, as_args(next(batches(task.calibration, batch))))
    return {name: value.numpy() for name, value in named.items()}


def fine_tuning(n_train: int, config: SweepConfig, **how: bool) -> FineTuneConfig:
    """The recipe for a training set of that size. how: bfloat16, channels_last."""
    batch_size = max(1, min(MAX_BATCH, n_train // MIN_STEPS_AN_EPOCH))
    epochs = config.epochs or max(MIN_EPOCHS, math.ceil(MIN_STEPS / (n_train // batch_size)))
    return FineTuneConfig(
        epochs=epochs,
        lr=config.lr,
        batch_size=batch_size,
        seed=config.seed,
        grad_clip=5.0,
        distill_weight=config.distill_weight,
        **how,
    )


def _recipe(task: Task, config: SweepConfig) -> FineTuneConfig | None:
    """How every variant is trained; None where there is no training data."""
    if task.train is None or task.loss is None:
        return None
    # Together they take the step of a pruned ResNet-20 from 106 to 80 ms, but bfloat16 alone to 181.
    channels_last = takes_channels_last(capture(task.model, task.example_inputs), task.example_inputs)
    bfloat16 = channels_last and bfloat16_pays(task.model)
    return fine_tuning(len(task.train), config, bfloat16=bfloat16, channels_last=channels_last)  # type: ignore[arg-type]


def _recovered(
    task: Task, variant: Variant, config: SweepConfig, recipe: FineTuneConfig | None, tell: Callable[[float], None]
) -> CapturedModule:
    """The task's model pruned as variant says, and fine-tuned where there is training data."""
    if not variant.ratio and not variant.sparsity:
        return capture(task.model, task.example_inputs)
    how: dict[str, Any] = {"round_to": config.round_to, "refit": True}
    if variant.sparsity:
        how = {"granularity": BLOCK, "schedule": "one-shot" if recipe is None else SPARSITY_SCHEDULE}

    def on_prune(step: PruneStep) -> None:
        layers = step.model.plan.layers.values()
        if variant.ratio and all(layer.kept == layer.channels for layer in layers):
            raise ConfigError(
                f"ratio={variant.ratio} removes nothing: {len(step.model.plan.skipped)} layers cannot be pruned."
            )

    pruned = prune_gradually(
        task,
        variant.sparsity or variant.ratio,
        importance=config.importance,
        scope="layer",
        fine_tuning=recipe,
        teacher=task.model if recipe is not None and recipe.distill_weight > 0 else None,
        on_prune=on_prune,
        on_step=lambda step: tell(step.step / step.n_steps),
        **how,
    )
    pruned.plan = replace(pruned.plan, seed=config.seed)
    return pruned


def _unfit_for_native(task: Task) -> str:
    """Why the native engine cannot run the model, or "": known before any training."""
    try:
        require("llvmlite", "native")
        lower(capture(task.model, task.example_inputs), task.example_inputs, "native")
    except LightenError as error:
        return f"not tried: {error}"
    return ""


def _lowered(
    task: Task, baseline: Scores, model: CapturedModule, trial: Candidate, config: SweepConfig, folder: Path
) -> Candidate:
    """trial with what was measured of model: quantized as it says, lowered to folder, and scored."""
    macs = count_macs(model, task.example_inputs)
    found = replace(trial, n_params=count_parameters(model), macs=macs)
    runtime = "native" if trial.sparsity else "onnxruntime"
    try:
        if trial.scheme is not None:
            model = _quantized(task, model, trial.scheme)
        model.plan = replace(model.plan, threads=config.threads, seed=config.seed, runtime=runtime)
        artifact = export(model, task.example_inputs, folder, runtime=runtime, threads=config.threads)
        scores = evaluate(called_like(model, artifact.path), task.selection, task.metric, task.batch_size)
    except LightenError as error:
        return replace(found, note=str(error))
    return replace(
        found,
        path=artifact.path,
        size_bytes=artifact.size_bytes,
        plan=model.plan,
        scores=scores,
        drop=paired_drop(baseline, scores),
        drop_bound=paired_drop(baseline, scores, level=0.9).high,
    )


def _quantized(task: Task, model: CapturedModule, scheme: str) -> CapturedModule:
    if parse_scheme(scheme).activation_bits is None:
        return quantize(model, scheme, example_inputs=task.example_inputs)
    bits = 7 if int8_saturates(this_cpu()) else None
    calibration = batches(task.calibration, task.batch_size)
    return quantize(model, scheme, calibration=calibration, example_inputs=task.example_inputs, weight_bits=bits)


def _tell_part(tell: OnProgress, done: int, n_trials: int, total: int, share: float, doing: str) -> None:
    tell(Progress(done + share * n_trials, total, doing))


def _folder_name(trial: Candidate) -> str:
    share = f"zeros-{round(1000 * trial.sparsity):03d}" if trial.sparsity else f"{round(1000 * trial.ratio):03d}"
    return f"{share}-{trial.scheme or 'float'}"
