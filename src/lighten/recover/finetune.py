"""Fine-tuning: the one training loop of lighten, with knowledge distillation as an option.

SGD with Nesterov momentum; the learning rate rises linearly and falls along half a cosine, step by step.
Sources: Loshchilov & Hutter, "SGDR", arXiv:1608.03983, for the cosine; Goyal et al., arXiv:1706.02677, for the rise;
Hinton et al., "Distilling the Knowledge in a Neural Network", arXiv:1503.02531, sec. 2, for distillation.
"""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, Dataset

from lighten.errors import ConfigError, TaskError
from lighten.task import as_args


@dataclass(frozen=True, kw_only=True)
class FineTuneConfig:
    """lr: the peak of the schedule. warmup: share of the steps that lead up to it. seed: of shuffling and dropout.

    weight_decay: on matrices and filters only. grad_clip: largest norm of a step's gradient, None = any.
    distill_weight: share of the loss that is the distance to a teacher's logits, the rest is the task's own loss.
    temperature: softens both sides of that distance.
    bfloat16: matrix products in bfloat16 (torch's autocast), weights and their updates in float32. It halves the time
    of a step where the device computes in bfloat16, see `bfloat16_pays`, and multiplies it elsewhere. channels_last:
    train convolutions in that memory layout, see `takes_channels_last`; the result is in the usual one.
    """

    epochs: int = 1
    lr: float = 0.05
    warmup: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch_size: int = 128
    seed: int = 0
    grad_clip: float | None = None
    distill_weight: float = 0.0
    temperature: float = 4.0
    bfloat16: bool = False
    channels_last: bool = False

    def __post_init__(self) -> None:
        allowed = {
            "epochs": (self.epochs >= 1, "1 or more"),
            "lr": (0 < self.lr < math.inf, "above 0, for example 0.05"),
            "warmup": (0 <= self.warmup < 1, "in [0, 1), for example 0.1"),
            "momentum": (0 < self.momentum < 1, "in (0, 1), for example 0.9"),
            "weight_decay": (0 <= self.weight_decay < math.inf, "0 or more, for example 5e-4"),
            "batch_size": (self.batch_size >= 1, "1 or more"),
            "grad_clip": (self.grad_clip is None or self.grad_clip > 0, "above 0, or None for no limit"),
            "distill_weight": (0 <= self.distill_weight <= 1, "in [0, 1], for example 0.5"),
            "temperature": (0 < self.temperature < math.inf, "above 0, for example 4"),
        }
        for name, (fits, range_) in allowed.items():
            if not fits:
                raise ConfigError(f"{name}={getattr(self, name)} cannot be used for fine-tuning. Choose it {range_}.")


@dataclass(frozen=True, kw_only=True)
class Step:
    """One finished training step: number step of n_steps (from 1), in epoch (from 1), its batch's loss and its lr."""

    step: int
    n_steps: int
    epoch: int
    loss: float
    lr: float


OnStep = Callable[[Step], None]
BeforeStep = Callable[[int, int, nn.Module], None]
OnEpoch = Callable[[int, nn.Module], None]


def fine_tune(
    model: nn.Module,
    train: Dataset[Any],
    loss: Callable[[Any, Any], Tensor],
    config: FineTuneConfig,
    *,
    teacher: nn.Module | None = None,
    before_step: BeforeStep | None = None,
    on_step: OnStep | None = None,
    on_epoch: OnEpoch | None = None,
) -> nn.Module:
    """Train a copy of model on train and return it in eval mode.

    model, teacher and the state of torch's random generators are left as they are; the seed alone decides the result.

    train: map-style, of (inputs, target). A last batch that is short is left out of its epoch.
    loss: (outputs, targets) -> scalar. teacher: gives logits [n, …, classes] like model's; needs distill_weight > 0.
    before_step: called with the number of finished steps, of all steps, and the module that is trained, which it may
    change in place. on_epoch: called with the number of finished epochs and the model in eval mode.

    Raises:
        ConfigError: the loss or the weights became NaN or infinite, nothing can be trained, or teacher and
            distill_weight come one without the other.
        TaskError: train is empty.
    """
    if (teacher is not None) != (config.distill_weight > 0):
        given = "no teacher" if teacher is None else "a teacher"
        raise ConfigError(
            f"distill_weight={config.distill_weight} with {given}: distillation needs both. "
            "Give teacher= and distill_weight in (0, 1], or neither."
        )
    loader = _loader(train, config)
    n_steps = config.epochs * len(loader)
    model = copy.deepcopy(model)
    teacher = None if teacher is None else copy.deepcopy(teacher).eval()
    if config.channels_last:
        for module in (model, teacher):
            if module is not None:
                _to_layout_(module, torch.channels_last)
    optimizer = _optimizer(model, config)
    with torch.random.fork_rng(), _denormals_flushed():
        torch.manual_seed(config.seed)
        step = 0
        for epoch in range(1, config.epochs + 1):
            model.train()
            for inputs, targets in loader:
                if before_step is not None:
                    before_step(step, n_steps, model)
                lr = learning_rate(step, n_steps, config)
                step += 1
                for group in optimizer.param_groups:
                    group["lr"] = lr
                total = _loss(model, teacher, inputs, targets, loss, config)
                if not math.isfinite(value := total.item()):
                    raise ConfigError(_diverged(f"The loss is {value}", step, n_steps, config))
                optimizer.zero_grad()
                total.backward()
                if config.grad_clip is not None:
                    nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
                optimizer.step()
                if on_step is not None:
                    on_step(Step(step=step, n_steps=n_steps, epoch=epoch, loss=value, lr=lr))
            model.eval()
            if on_epoch is not None:
                with torch.random.fork_rng():  # watching must not change what is watched
                    on_epoch(epoch, model)
    if config.channels_last:
        _to_layout_(model, torch.contiguous_format)
    if not all(bool(parameter.isfinite().all()) for parameter in model.parameters()):
        raise ConfigError(_diverged("A weight is NaN or infinite", n_steps, n_steps, config))
    return model.eval()


def learning_rate(step: int, n_steps: int, config: FineTuneConfig) -> float:
    """The rate of step (from 0): a linear rise to config.lr, then half a cosine that would reach 0 at n_steps."""
    n_warmup = int(config.warmup * n_steps)
    if step < n_warmup:
        return config.lr * (step + 1) / n_warmup
    return config.lr * (1 + math.cos(math.pi * (step - n_warmup) / (n_steps - n_warmup))) / 2


def bfloat16_pays(model: nn.Module) -> bool:
    """Whether the device that holds model multiplies bfloat16 matrices in hardware."""
    device = next(iter(model.parameters()), torch.empty(0)).device.type
    if device == "cpu":
        return bool(torch.cpu.get_capabilities().get("avx512_bf16", False))
    return device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def takes_channels_last(model: nn.Module, inputs: tuple[Any, ...]) -> bool:
    """Whether model has two-dimensional convolutions and computes what it did when they are laid out channels last.

    A `view` of what a convolution made, for one, cannot be taken in that layout; parameters with five axes have none.
    """
    if not any(parameter.ndim == 4 for parameter in model.parameters()):
        return False
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        wanted = model(*inputs)
        try:
            _to_layout_(model, torch.channels_last)
            found = model(*inputs)
        except RuntimeError:
            return False
    pairs = zip(pytree.tree_leaves(wanted), pytree.tree_leaves(found), strict=True)
    return all(torch.allclose(a, b, rtol=1e-3, atol=1e-3) for a, b in pairs if isinstance(a, Tensor))


def _to_layout_(model: nn.Module, layout: torch.memory_format) -> None:
    model.to(memory_format=layout)  # type: ignore[call-overload]


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² · KL(teacher || student) of logits [n, …, classes] softened by T, averaged over all but the classes.

    The factor T² keeps the gradient's size comparable to the task's own loss when T changes.
    """
    wanted = F.log_softmax(teacher / temperature, -1).flatten(0, -2)
    got = F.log_softmax(student / temperature, -1).flatten(0, -2)
    return F.kl_div(got, wanted, reduction="batchmean", log_target=True) * temperature**2


def _loss(
    model: nn.Module,
    teacher: nn.Module | None,
    inputs: Any,
    targets: Any,
    loss: Callable[[Any, Any], Tensor],
    config: FineTuneConfig,
) -> Tensor:
    args = as_args(inputs)
    outputs = _outputs(model, args, config)
    own = loss(outputs, targets)
    if teacher is None:
        return own
    with torch.no_grad():
        wanted = _outputs(teacher, args, config)
    return torch.lerp(own, distillation_loss(outputs, wanted, config.temperature), config.distill_weight)


def _outputs(model: nn.Module, args: tuple[Any, ...], config: FineTuneConfig) -> Any:
    """Losses are sums and logarithms, so what a model gives in bfloat16 goes to them in float32."""
    device = next(model.parameters()).device.type
    with torch.autocast(device, torch.bfloat16, enabled=config.bfloat16):
        outputs = model(*args)
    return pytree.tree_map_only(Tensor, _in_float32, outputs) if config.bfloat16 else outputs


def _in_float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor


def _loader(train: Dataset[Any], config: FineTuneConfig) -> DataLoader[Any]:
    n = len(train)  # type: ignore[arg-type]
    if n == 0:
        raise TaskError("The training set is empty: there is nothing to fine-tune on. Give at least one sample.")
    return DataLoader(
        train,
        batch_size=config.batch_size,
        shuffle=True,
        # A batch of a few samples would give batch norm statistics that are mostly noise.
        drop_last=n >= config.batch_size,
        generator=torch.Generator().manual_seed(config.seed),
    )


def _optimizer(model: nn.Module, config: FineTuneConfig) -> torch.optim.SGD:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise ConfigError("No parameter of the model requires a gradient, so nothing can be trained. Unfreeze some.")
    # Decay keeps matrices small; on a bias or a batch norm's scale it only pulls the function towards zero.
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=True)


def _diverged(what: str, step: int, n_steps: int, config: FineTuneConfig) -> str:
    return (
        f"{what} at step {step} of {n_steps} (lr={config.lr}): training diverged. Lower lr, for example to "
        f"{config.lr / 10:g}, or set grad_clip=1. If it is step 1, look for NaN in the training inputs."
    )


@contextmanager
def _denormals_flushed() -> Iterator[None]:
    # Once a channel is dead its momentum shrinks by 0.9 a step and after about 830 steps is denormal (below 1e-38),
    # where x86 falls back to microcode and a multiplication takes some hundred cycles instead of a few.
    was_flushing = float(torch.tensor(1e-40) * 1.0) == 0.0  # torch can set the mode but not tell it
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(was_flushing)
