"""Realize: from what is decided to real artifacts. What is known of a candidate was measured on its own artifact.

A *variant* is what is trained once: channels taken out and refitted, blocks of zeros that come while the rest is
trained. It is then lowered in each number format, and to each runtime that may run it. Accuracy comes from selection
data through the candidate's own runtime.
"""

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from lighten.errors import ConfigError, LightenError
from lighten.export import export
from lighten.export.onnx import named_inputs
from lighten.graph.capture import CapturedModule, capture
from lighten.graph.count import count_macs, count_parameters
from lighten.graph.groups import find_groups
from lighten.graph.labels import propagate
from lighten.metric import Scores
from lighten.plan import LayerPlan, Plan
from lighten.prune.gradual import prune_gradually
from lighten.prune.layers import find_layers, is_depthwise
from lighten.prune.masks import masks
from lighten.quantize import quantize
from lighten.quantize.assignment import parse_assignment
from lighten.quantize.mixed import measure
from lighten.recover.finetune import FineTuneConfig, bfloat16_pays, takes_channels_last
from lighten.recover.optimizer import suits_sgd
from lighten.runtime.runner import load
from lighten.search.bits import WIDTHS, fewest_bits, mean_bits
from lighten.search.candidate import Candidate, compared
from lighten.search.choices import Ranking, ranking
from lighten.search.clock import computes_in, dtype_of, predicted_ms
from lighten.search.config import BLOCK, SearchConfig
from lighten.search.cost import layer_shapes
from lighten.search.sanity import gives_logits
from lighten.task import Task, as_args, batches, evaluate

SPARSITY_SCHEDULE = "gradual:20"
UNTRAINED_IMPORTANCE = "sparsegpt"  # moves the weights that stay, where no training will
# A short fine-tune is at least this many steps: three epochs of a large set, more of a small one.
MIN_STEPS = 400
MIN_EPOCHS = 3
MAX_BATCH = 128
SGD_LR, ADAMW_LR = 0.1, 1e-3
ENOUGH_BITS, FEW_BITS_METHOD = 8, "gptq"  # with fewer, it matters how weights are rounded
N_SAMPLES = 256  # sensitivities rank layers; that takes fewer samples than ranges do
MIN_STEPS_AN_EPOCH = 20


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What is trained once. name: without the scheme.

    ratio, sparsity: shares of every layer's channels that go, and of its weights that are zero; channels, zeros: those
    of layers that have one of their own, by name. schemes, runtimes: each scheme is lowered to the runtimes that take
    it. epochs: of training, 0 where there is no training data. predicted_ms: of the search's tables.
    narrow_to: the drop up to which one more candidate has fewer bits a layer, see lighten.search.bits; None = none has.
    """

    name: str
    ratio: float = 0.0
    sparsity: float = 0.0
    channels: Mapping[str, float] = field(default_factory=dict)
    zeros: Mapping[str, float] = field(default_factory=dict)
    schemes: tuple[str | None, ...] = (None,)
    runtimes: tuple[str, ...] = ("onnxruntime",)
    epochs: int = 0
    predicted_ms: float | None = None
    narrow_to: float | None = None

    @property
    def has_zeros(self) -> bool:
        """Whether any weights are to be zero."""
        return self.sparsity > 0 or any(self.zeros.values())

    @property
    def has_fewer_channels(self) -> bool:
        """Whether any channels are to go."""
        return self.ratio > 0 or any(self.channels.values())

    def trials(self) -> list[Candidate]:
        """A candidate for each scheme, of which nothing is known yet."""
        return [
            Candidate(
                name=f"{self.name}, {scheme or 'float'}",
                ratio=self.ratio,
                scheme=scheme,
                sparsity=self.sparsity,
                epochs=self.epochs,
                predicted_ms=self.predicted_ms,
            )
            for scheme in self.schemes
        ]


def lower_original(task: Task, config: SearchConfig, runtime: str, folder: Path) -> Candidate:
    """The original, lowered losslessly to runtime; its scores are not taken yet.

    Raises:
        CaptureError, ArtifactError: the model cannot be lowered.
    """
    model = capture(task.model, task.example_inputs)
    model.plan = replace(model.plan, threads=config.threads, seed=config.seed, runtime=runtime)
    artifact = export(model, task.example_inputs, folder, runtime=runtime, threads=config.threads)
    device = config.device
    return Candidate(
        name="the original",
        predicted_ms=None
        if device is None
        else predicted_ms(device, model, task.example_inputs, computes_in(device), config.batch),
        n_params=count_parameters(model),
        macs=count_macs(model, task.example_inputs),
        path=artifact.path,
        size_bytes=artifact.size_bytes,
        plan=model.plan,
    )


def realize(
    task: Task,
    baseline: Scores,
    variant: Variant,
    config: SearchConfig,
    folder: Path,
    tell: Callable[[float, str], None],
    checkpoints: Path | None = None,
) -> list[Candidate]:
    """variant's candidates, trained and lowered below folder, or with a note why not.

    baseline: the original's scores on selection data. tell: share of the work, and a sentence. checkpoints: a folder
    that training writes to after each epoch, and goes on from.
    """
    tell(0.0, f"{variant.name}: training" if variant.epochs else variant.name)
    try:
        model = recovered(task, variant, config, lambda share: tell(0.8 * share, ""), checkpoints)
    except LightenError as error:
        return [replace(trial, note=str(error)) for trial in variant.trials()]
    found: list[Candidate] = []
    trials = variant.trials()
    for i, trial in enumerate(trials):
        tell(0.8 + 0.2 * i / len(trials), f"{trial.name}: lowering and scoring")
        found += _lowered(task, baseline, model, trial, variant.runtimes, config, folder / str(i))
    if variant.narrow_to is not None:
        tell(0.9, f"{variant.name}: fewer bits")
        found += _narrowed(task, baseline, model, variant, config, folder / "bits")
    return found


def called_like(model: CapturedModule, artifact: Path) -> Callable[..., Any]:
    """The artifact as a function of the positional arguments that model, or the one it came from, takes."""
    runner = load(artifact)
    return lambda *inputs: runner(named_inputs(model, inputs))


def scored(task: Task, model: CapturedModule, artifact: Path, on: Any) -> Scores:
    """What the artifact scores on that data of the task. model: as in called_like.

    Raises:
        TaskError: the metric cannot score it.
    """
    return evaluate(called_like(model, artifact), on, task.metric, task.batch_size)


def representative_inputs(task: Task, model: CapturedModule, batch: int) -> dict[str, Any]:
    """The first `batch` calibration samples by the names that every artifact of the task gives them, as arrays.

    model: the task's, captured.
    """
    named = named_inputs(model, as_args(next(batches(task.calibration, batch))))
    return {name: value.numpy() for name, value in named.items()}


def default_epochs(task: Task, config: SearchConfig) -> int:
    """Of a short training; 0 where there is no training data."""
    if task.train is None or task.loss is None:
        return 0
    n_train = len(task.train)  # type: ignore[arg-type]
    steps = n_train // _batch_size(n_train)
    return config.epochs or max(MIN_EPOCHS, math.ceil(MIN_STEPS / steps))


def training(task: Task, config: SearchConfig, epochs: int) -> FineTuneConfig | None:
    """How a variant is trained; None for no epochs."""
    if not epochs:
        return None
    model = capture(task.model, task.example_inputs)
    by_sgd = suits_sgd(model.graph)
    # Together they take the step of a pruned ResNet-20 from 106 to 80 ms, but bfloat16 alone to 181.
    channels_last = takes_channels_last(model, task.example_inputs)
    recipe: Callable[..., FineTuneConfig] = partial(FineTuneConfig, grad_clip=5.0) if by_sgd else FineTuneConfig.adamw
    return recipe(
        epochs=epochs,
        lr=config.lr or (SGD_LR if by_sgd else ADAMW_LR),
        batch_size=_batch_size(len(task.train)),  # type: ignore[arg-type]
        seed=config.seed,
        distill_weight=config.distill_weight if gives_logits(task) else 0.0,
        bfloat16=channels_last and bfloat16_pays(task.model),
        channels_last=channels_last,
    )


def _batch_size(n_train: int) -> int:
    return max(1, min(MAX_BATCH, n_train // MIN_STEPS_AN_EPOCH))


def recovered(
    task: Task,
    variant: Variant,
    config: SearchConfig,
    tell: Callable[[float], None],
    checkpoints: Path | None = None,
) -> CapturedModule:
    """The task's model pruned as variant says, and trained; checkpoints: as in realize.

    Raises:
        ConfigError: nothing could be pruned. CaptureError, TaskError: see lighten.prune.
    """
    recipe = training(task, config, variant.epochs)
    model = capture(task.model, task.example_inputs)
    if variant.has_fewer_channels:
        model = _pruned(
            task,
            model,
            variant.ratio,
            variant.channels,
            None if variant.has_zeros else recipe,
            tell,
            checkpoints=checkpoints,
            importance=ranked(model, task.example_inputs, config).importance,
            round_to=config.round_to,
            refit=True,
        )
        layers = model.plan.layers.values()
        if all(layer.kept == layer.channels for layer in layers):
            raise ConfigError(f"{variant.name}: {len(model.plan.skipped)} layers cannot be pruned, so nothing goes.")
    if variant.has_zeros:
        how: dict[str, Any] = {"importance": config.zero_importance, "schedule": SPARSITY_SCHEDULE}
        if recipe is None:
            how = {"importance": UNTRAINED_IMPORTANCE, "schedule": "one-shot"}
        how |= {"granularity": BLOCK, "checkpoints": checkpoints, "exclude": _without_zeros(model, variant)}
        model = _pruned(task, model, variant.sparsity, variant.zeros, recipe, tell, **how)
    model.plan = replace(model.plan, seed=config.seed)
    return model


def lower_untrained(task: Task, variant: Variant, config: SearchConfig, folder: Path) -> Path:
    """variant on its first runtime for its time alone, which depends on how much goes and not on what.

    Raises:
        LightenError: it cannot be pruned or lowered.
    """
    model = capture(task.model, task.example_inputs)
    how: dict[str, Any] = {"recipe": None, "tell": lambda share: None, "importance": "l2"}
    if variant.has_fewer_channels:
        model = _pruned(task, model, variant.ratio, variant.channels, round_to=config.round_to, **how)
    if variant.has_zeros:
        how |= {"granularity": BLOCK, "exclude": _without_zeros(model, variant)}
        model = _pruned(task, model, variant.sparsity, variant.zeros, **how)
    if (scheme := variant.schemes[0]) is not None:
        model = _quantized(task, model, scheme)
    return export(model, task.example_inputs, folder, runtime=variant.runtimes[0], threads=config.threads).path


def _without_zeros(model: CapturedModule, variant: Variant) -> list[str]:
    """Depthwise layers, which the native engine computes with their zeros, unless they are to have some."""
    own = [layer.name for layer in find_layers(model)[0] if is_depthwise(model, layer)]
    return [name for name in own if not variant.zeros.get(name)]


def ranked(captured: CapturedModule, example_inputs: tuple[Any, ...], config: SearchConfig) -> Ranking:
    """What the channels of captured are ranked by."""
    labels = propagate(captured, example_inputs)
    return ranking(captured, labels, find_groups(labels), config.importance)


def _pruned(
    task: Task,
    model: nn.Module,
    share: float,
    own: Mapping[str, float],
    recipe: FineTuneConfig | None,
    tell: Callable[[float], None],
    **how: Any,
) -> CapturedModule:
    return prune_gradually(
        replace(task, model=model),
        share,
        scope="layer",
        overrides=dict(own),
        fine_tuning=recipe,
        teacher=task.model if recipe is not None and recipe.distill_weight > 0 else None,
        on_step=lambda step: tell(step.step / step.n_steps),
        **how,
    )


def variant_of(plan: Plan) -> Variant:
    """What was trained where plan was the outcome.

    Raises:
        ConfigError: nothing is pruned and nothing quantized in plan, or it was pruned as the search does not do.
    """
    layers = {name: layer for name, layer in plan.layers.items() if layer.granularity is not None}
    if odd := {layer.granularity for layer in layers.values()} - {"channel", BLOCK}:
        raise ConfigError(f"The plan prunes {odd.pop()}, which compress does not: use `lighten prune --plan`.")
    channels = {name: share for name, layer in layers.items() if (share := _share_lost(layer))}
    zeros = {name: layer.sparsity for name, layer in layers.items() if layer.sparsity}
    if not channels and not zeros and plan.scheme is None:
        raise ConfigError("The plan neither prunes nor quantizes, so there is nothing to do.")
    return Variant(
        name="the plan",
        channels=channels,
        zeros=zeros,
        schemes=(plan.scheme,),
        runtimes=(plan.runtime,),
        epochs=plan.epochs,
    )


def _share_lost(layer: LayerPlan) -> float:
    return 0.0 if layer.channels is None or layer.kept is None else 1 - layer.kept / layer.channels


def _lowered(
    task: Task,
    baseline: Scores,
    model: CapturedModule,
    trial: Candidate,
    runtimes: tuple[str, ...],
    config: SearchConfig,
    folder: Path,
) -> list[Candidate]:
    """trial with what was measured of model: quantized as it says, lowered to each runtime, and scored on the first.

    What a second runtime computes was compared with the module when it was exported.
    """
    found = _counted(trial, model, task)
    scores: Scores | None = None
    made: list[Candidate] = []
    try:
        if config.device is not None:
            ms = predicted_ms(config.device, model, task.example_inputs, dtype_of(trial.scheme), config.batch)
            found = replace(found, predicted_ms=ms)
        if trial.scheme is not None:
            model = _quantized(task, model, trial.scheme)
    except LightenError as error:
        return [replace(found, note=str(error))]
    for runtime in runtimes:
        one = found if len(runtimes) == 1 else replace(found, name=f"{found.name}, {runtime}")
        try:
            plan = replace(model.plan, threads=config.threads, seed=config.seed, runtime=runtime, epochs=trial.epochs)
            model.plan = plan
            artifact = export(model, task.example_inputs, folder / runtime, runtime=runtime, threads=config.threads)
            one = replace(one, path=artifact.path, size_bytes=artifact.size_bytes, plan=plan)
            scores = scores or scored(task, model, artifact.path, task.selection)
            made.append(compared(one, scores, baseline))
        except LightenError as error:
            made.append(replace(one, path=None, note=str(error)))
    return made


def _narrowed(
    task: Task, baseline: Scores, model: CapturedModule, variant: Variant, config: SearchConfig, folder: Path
) -> list[Candidate]:
    """The version of fewest bits a layer whose drop is within variant.narrow_to, on its first runtime; or none."""
    (runtime, *_), within, made = variant.runtimes, variant.narrow_to, list[Candidate]()
    assert within is not None
    samples = itertools.islice(batches(task.calibration, task.batch_size), -(-N_SAMPLES // task.batch_size))
    table = measure(model, WIDTHS[runtime], calibration=samples)

    def is_within(assignment: dict[str, str]) -> bool:
        trial = replace(
            variant.trials()[0],
            name=f"{variant.name}, {mean_bits(table, assignment):.1f} bits",
            scheme=parse_assignment(assignment).name,
        )
        (found,) = _lowered(task, baseline, model, trial, (runtime,), config, folder / str(len(made)))
        good = found.drop is not None and found.drop.value <= within
        made.extend([found] if good else [])
        return good

    fewest_bits(table, is_within)
    return made[-1:]


def _counted(trial: Candidate, model: CapturedModule, task: Task) -> Candidate:
    """trial with what is left of its channels, weights and multiplications."""
    known = [x for x in model.plan.layers.values() if x.channels is not None and x.kept is not None]
    channels, kept = (sum(getattr(x, name) or 0 for x in known) for name in ("channels", "kept"))
    n_params, macs = count_parameters(model), count_macs(model, task.example_inputs)
    held = masks(model)
    zeros = {name: int((~mask).sum()) for name, mask in held.items()}
    layers = [layer for layer in find_layers(model)[0] if layer.parameter in held] if held else []
    for layer, shapes in zip(layers, layer_shapes(model, layers, task.example_inputs, 1), strict=True):
        macs -= sum(zeros[layer.parameter] * shape.macs // shape.n_weights for shape in shapes)
    return replace(
        trial,
        ratio=1 - kept / channels if channels else 0.0,
        sparsity=sum(zeros.values()) / sum(mask.numel() for mask in held.values()) if held else 0.0,
        n_params=n_params - sum(zeros.values()),
        macs=macs,
    )


def _quantized(task: Task, model: CapturedModule, scheme: str) -> CapturedModule:
    assignment, how = parse_assignment(scheme), dict[str, Any](example_inputs=task.example_inputs)
    calibration = batches(task.calibration, task.batch_size)
    if assignment.default.activation_bits is not None:
        how |= {"calibration": calibration}
    elif any(s.weight_bits < ENOUGH_BITS for s in assignment.schemes):
        how |= {"calibration": calibration, "method": FEW_BITS_METHOD}
    return quantize(model, scheme, **how)
