import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lighten.errors import ConfigError, TaskError
from lighten.graph.capture import capture
from lighten.recover.distill import distillation_loss
from lighten.recover.finetune import FineTuneConfig, Step, fine_tune, takes_channels_last
from lighten.recover.optimizer import learning_rate
from lighten.recover.precision import CONVOLUTIONS, computed, to_layout_
from lighten.tasks.samples import Samples

PLAIN = FineTuneConfig(epochs=2, lr=0.1, warmup=0.0, weight_decay=0.0, batch_size=4)


class Net(nn.Module):
    """Everything a training loop can get wrong: batch norm, dropout, a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 8)
        self.norm = nn.BatchNorm1d(8)
        self.dropout = nn.Dropout(0.2)
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.dropout(F.relu(self.norm(self.first(x)))))
        return out


def seeded(seed: int = 0) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Net().eval()


def data(n: int = 18) -> Samples:
    inputs = torch.randn(n, 5, generator=torch.Generator().manual_seed(1))
    return Samples(inputs, inputs[:, :3].argmax(-1))


def flat(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def tune(config: FineTuneConfig = PLAIN, model: nn.Module | None = None, **more: Any) -> nn.Module:
    return fine_tune(model or seeded(), data(), F.cross_entropy, config, **more)


@pytest.mark.parametrize(("decay", "expected"), [(0.0, 0.62), (0.5, 0.525)])
def test_one_nesterov_step_by_hand(decay: float, expected: float) -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    one = Samples(torch.ones(1, 1), torch.zeros(1, 1))
    config = FineTuneConfig(lr=0.1, warmup=0.0, momentum=0.9, weight_decay=decay)
    tuned = fine_tune(model, one, F.mse_loss, config)
    # The loss is w², its gradient at w = 1 is 2 + decay; Nesterov's first step is lr · (1 + momentum) · gradient.
    assert flat(tuned).item() == pytest.approx(expected)
    assert flat(model).item() == 1


def test_schedule_by_hand() -> None:
    assert [learning_rate(step, 4, 1.0, 0.5) for step in range(4)] == pytest.approx([0.5, 1.0, 1.0, 0.5])


@given(st.integers(1, 500), st.floats(0, 0.99), st.floats(1e-6, 10))
def test_schedule_rises_to_its_peak_and_falls_but_never_to_zero(n_steps: int, warmup: float, lr: float) -> None:
    rates = [learning_rate(step, n_steps, lr, warmup) for step in range(n_steps)]
    peak = rates.index(max(rates))
    assert max(rates) == pytest.approx(lr)
    assert min(rates) > 0
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)


def test_training_lowers_the_loss_and_leaves_the_model_alone() -> None:
    model = seeded().train()
    before = copy.deepcopy(model.state_dict())
    tuned = tune(replace(PLAIN, epochs=20), model)
    inputs, targets = data().inputs, data().targets
    assert F.cross_entropy(tuned(inputs), targets) < F.cross_entropy(model.eval()(inputs), targets) / 2
    assert not tuned.training
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items() if "norm" not in name)
    assert torch.equal(model.norm.running_mean, before["norm.running_mean"])


def test_the_seed_alone_decides_and_global_randomness_is_left_alone() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = tune()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    assert torch.equal(flat(first), flat(tune()))
    # Watching, even with random numbers, does not change what is watched.
    assert torch.equal(flat(first), flat(tune(on_epoch=lambda epoch, model: torch.rand(3))))


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": 3},
        {"lr": 0.05},
        {"warmup": 0.5},
        {"momentum": 0.5},
        {"weight_decay": 0.1},
        {"batch_size": 6},
        {"seed": 1},
        {"grad_clip": 0.01},
        {"ema": 0.5},
        {"optimizer": "adamw"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_setting_is_noticed(change: dict[str, Any]) -> None:
    assert not torch.equal(flat(tune()), flat(tune(replace(PLAIN, **change))))


@pytest.mark.parametrize("change", [{"distill_weight": 0.9}, {"temperature": 1.0}], ids=["weight", "temperature"])
def test_every_setting_of_distillation_is_noticed(change: dict[str, Any]) -> None:
    config = replace(PLAIN, distill_weight=0.5)
    teacher = seeded(7)
    assert not torch.equal(flat(tune(config, teacher=teacher)), flat(tune(replace(config, **change), teacher=teacher)))


def test_decay_is_for_matrices_only() -> None:
    model = nn.Linear(5, 3)
    nn.init.ones_(model.weight)
    nn.init.ones_(model.bias)
    config = replace(PLAIN, weight_decay=0.5)
    tuned = fine_tune(model, data(), lambda outputs, targets: 0 * outputs.sum(), config)
    assert bool((tuned.weight < 1).all())
    assert torch.equal(tuned.bias, torch.ones(3))


def test_callbacks_see_every_step_and_epoch() -> None:
    steps: list[Step] = []
    epochs: list[tuple[int, bool]] = []
    tune(on_step=steps.append, on_epoch=lambda epoch, model: epochs.append((epoch, model.training)))
    # 18 samples are 4 batches of 4; the last 2 samples of an epoch are left out.
    assert [(step.step, step.n_steps, step.epoch) for step in steps] == [(i + 1, 8, i // 4 + 1) for i in range(8)]
    assert [step.lr for step in steps] == pytest.approx([learning_rate(i, 8, 0.1, 0.0) for i in range(8)])
    assert all(math.isfinite(step.loss) for step in steps)
    assert epochs == [(1, False), (2, False)]


def test_fewer_samples_than_a_batch_are_one_batch() -> None:
    steps: list[Step] = []
    fine_tune(seeded(), data(3), F.cross_entropy, PLAIN, on_step=steps.append)
    assert len(steps) == 2


def test_distillation_loss_by_hand() -> None:
    teacher, student = torch.tensor([[0.0, math.log(3)]]), torch.zeros(1, 2)
    expected = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    assert distillation_loss(student, teacher, 1.0).item() == pytest.approx(expected)
    assert distillation_loss(2 * student, 2 * teacher, 2.0).item() == pytest.approx(4 * expected)


@given(st.integers(0, 1000), st.floats(0.5, 10))
def test_distillation_gradient_is_the_difference_of_softened_outputs(seed: int, temperature: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
    distillation_loss(student, teacher, temperature).backward()
    difference = (student / temperature).softmax(-1) - (teacher / temperature).softmax(-1)
    torch.testing.assert_close(student.grad, (temperature * difference / 6).detach())  # 6 = rows of 4 classes


def test_a_teacher_alone_can_teach() -> None:
    teacher = seeded(7)
    for module in teacher.modules():
        module.training = True  # fine_tune must use it in eval mode, and give it back as it was
    before = copy.deepcopy(teacher.state_dict())
    config = replace(PLAIN, epochs=150, distill_weight=1.0, batch_size=18)
    tuned = tune(config, teacher=teacher)
    assert teacher.training
    assert all(torch.equal(teacher.state_dict()[name], value) for name, value in before.items())
    inputs = data().inputs
    distance = distillation_loss(tuned(inputs), teacher.eval()(inputs), 1.0)
    assert distance < distillation_loss(seeded()(inputs), teacher(inputs), 1.0) / 10


def test_a_teacher_and_its_weight_need_each_other() -> None:
    with pytest.raises(ConfigError, match=r"distill_weight=0.0 and feature_weight=0.0 with a teacher"):
        tune(teacher=seeded(1))
    with pytest.raises(ConfigError, match=r"distill_weight=0.5 and feature_weight=0.0 with no teacher"):
        tune(replace(PLAIN, distill_weight=0.5))


def test_a_teacher_needs_no_labels() -> None:
    config = replace(PLAIN, distill_weight=1.0)
    unlabelled = fine_tune(seeded(), Samples(data().inputs), None, config, teacher=seeded(7))
    assert torch.equal(flat(unlabelled), flat(tune(config, teacher=seeded(7))))


def test_without_labels_the_teacher_has_to_be_everything() -> None:
    inputs = Samples(data().inputs)
    with pytest.raises(ConfigError, match=r"loss=None with distill_weight=0.5.*a teacher and distill_weight=1"):
        fine_tune(seeded(), inputs, None, replace(PLAIN, distill_weight=0.5), teacher=seeded(7))
    with pytest.raises(ConfigError, match=r"loss=None with distill_weight=0.0"):
        fine_tune(seeded(), inputs, None, PLAIN)


def test_a_nan_loss_is_refused_with_its_step_and_a_way_out() -> None:
    calls = iter([1.0, 1.0, math.nan])

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets) * next(calls)

    with pytest.raises(ConfigError, match=r"loss is nan at step 3 of 8 \(lr=0.1\).*Lower lr, for example to 0.01"):
        fine_tune(seeded(), data(), loss, PLAIN)


def test_weights_that_the_last_step_breaks_are_refused() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    one = Samples(torch.ones(1, 1), torch.zeros(1, 1))
    with pytest.raises(ConfigError, match="A weight is NaN or infinite at step 1 of 1"):
        fine_tune(model, one, lambda outputs, targets: 1e20 * outputs.sum(), FineTuneConfig(lr=1e30, warmup=0.0))


def test_nothing_to_train_is_refused() -> None:
    with pytest.raises(ConfigError, match="No parameter of the model requires a gradient"):
        tune(model=seeded().requires_grad_(False))
    with pytest.raises(TaskError, match="training set is empty"):
        fine_tune(seeded(), data(0), F.cross_entropy, PLAIN)


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": 0},
        {"lr": 0.0},
        {"lr": math.nan},
        {"warmup": 1.0},
        {"momentum": 0.0},
        {"weight_decay": -1.0},
        {"batch_size": 0},
        {"grad_clip": 0.0},
        {"optimizer": "adam"},
        {"ema": 1.0},
        {"features": ("first",)},
        {"feature_weight": -1.0},
        {"patience": 0},
        {"distill_weight": 1.5},
        {"temperature": 0.0},
    ],
    ids=str,
)
def test_a_setting_out_of_range_is_refused_by_name(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(change))}="):
        FineTuneConfig(**change)


@pytest.mark.parametrize("mode", [True, False])
def test_denormals_are_flushed_inside_and_as_before_outside(mode: bool) -> None:
    def flushes() -> bool:
        return float(torch.tensor(1e-40) * 1.0) == 0.0

    inside: list[bool] = []
    torch.set_flush_denormal(mode)
    try:
        tune(on_step=lambda step: inside.append(flushes()))
        assert all(inside)
        assert flushes() is mode
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.parametrize("is_captured", [False, True])
def test_attention_is_not_computed_in_bfloat16(is_captured: bool) -> None:
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = nn.Linear(8, 24)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q, k, v = self.qkv(x).chunk(3, -1)
            return F.scaled_dot_product_attention(q, k, v)

    torch.manual_seed(0)
    x = torch.randn(4, 2, 5, 8)
    model: nn.Module = Attending()
    wanted = F.scaled_dot_product_attention(
        *(part.bfloat16().float() for part in F.linear(*(t.bfloat16() for t in (x, *model.parameters()))).chunk(3, -1))
    )
    if is_captured:
        model = capture(model, (x,))
    # Of the same rounded queries, keys and values: what bfloat16 itself would add is 2^-9.
    torch.testing.assert_close(computed(model, (x,), True), wanted, rtol=1e-5, atol=1e-5)


class Striding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.depthwise = nn.Conv2d(2, 8, 3, bias=False), nn.Conv2d(8, 8, 3, 2, groups=8, bias=False)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = F.adaptive_avg_pool2d(F.relu(self.norm(self.depthwise(self.conv(x)))), 1)
        return y


@pytest.mark.parametrize("is_captured", [False, True])
def test_what_a_cpu_is_slow_at_in_bfloat16_is_computed_to_the_same_values_in_another_way(is_captured: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 2, 9, 9).contiguous(memory_format=torch.channels_last)
    plain = Striding().eval()
    to_layout_(plain, torch.channels_last)
    model: nn.Module = capture(copy.deepcopy(plain), (x,)) if is_captured else copy.deepcopy(plain)
    layouts, dtypes = list[bool](), list[torch.dtype]()

    class Watching(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made = func(*args, **(kwargs or {}))
            if func in CONVOLUTIONS:
                dtypes.append(args[0].dtype)
            if func in (F.relu, torch.ops.aten.relu.default):
                made.register_hook(lambda g: layouts.append(g.is_contiguous(memory_format=torch.channels_last)))
            return made

    with Watching():
        computed(model, (x,), True).sum().backward()
    with torch.autocast("cpu", torch.bfloat16):
        plain(x).float().sum().backward()
    assert dtypes == [torch.float32, torch.float32]  # the first is rounded by autocast, below this mode
    assert layouts == [True]
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        # Sums of 6 · 16 products, each rounded to 8 bits once more or once less.
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=2**-5, atol=2**-5 * float(theirs.grad.abs().max()))


def test_bfloat16_is_for_products_alone() -> None:
    config = replace(PLAIN, epochs=1, bfloat16=True, distill_weight=0.5)
    seen: list[torch.dtype] = []

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        seen.append(outputs.dtype)
        return F.cross_entropy(outputs, targets)

    rough = fine_tune(seeded(), data(), loss, config, teacher=seeded(1))
    exact = fine_tune(seeded(), data(), loss, replace(config, bfloat16=False), teacher=seeded(1))
    assert set(seen) == {torch.float32}
    assert {parameter.dtype for parameter in rough.parameters()} == {torch.float32}
    assert not torch.equal(flat(rough), flat(exact))
    moved = (flat(exact) - flat(seeded())).norm()
    # Four steps; each product is rounded to 8 bits: 2 ** -8 of itself, a few of them one after the other.
    assert (flat(rough) - flat(exact)).norm() < 16 * 2**-8 * moved


class Pictures(nn.Module):
    """View: flatten by a view that only the plain layout allows."""

    def __init__(self, view: bool) -> None:
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Linear(36, 3)
        self.view = view

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x)))
        out: Tensor = self.last(x.view(-1, 36) if self.view else x.flatten(1))
        return out


def test_channels_last_is_a_layout_and_nothing_else() -> None:
    torch.manual_seed(0)
    model, x = Pictures(view=False).eval(), torch.randn(12, 2, 5, 5)
    assert takes_channels_last(model, (x[:2],))
    assert not takes_channels_last(Pictures(view=True).eval(), (x[:2],))
    assert not takes_channels_last(seeded(), (torch.randn(2, 5),))
    volumes = nn.Sequential(nn.Conv3d(1, 2, 3), nn.Flatten(2), nn.Unflatten(2, (3, 9)), nn.Conv2d(2, 1, 3))
    assert not takes_channels_last(volumes, (torch.randn(1, 1, 5, 5, 5),))
    seen: list[bool] = []

    def before(done: int, n_steps: int, trained: nn.Module) -> None:
        seen.append(trained.get_parameter("conv.weight").is_contiguous(memory_format=torch.channels_last))

    train = Samples(x, x[:, 0, 0, :3].argmax(-1))
    plain, last = (
        fine_tune(model, train, F.cross_entropy, replace(PLAIN, channels_last=flag), before_step=before)
        for flag in (False, True)
    )
    assert seen == [False] * 6 + [True] * 6
    assert last.get_parameter("conv.weight").is_contiguous()
    assert model.get_parameter("conv.weight").is_contiguous()
    torch.testing.assert_close(flat(last), flat(plain), rtol=1e-4, atol=1e-5)  # sums of floats in another order


def test_a_step_can_be_preceded() -> None:
    told: list[tuple[int, int, bool]] = []

    def before(done: int, n_steps: int, model: nn.Module) -> None:
        told.append((done, n_steps, model.training))
        model.get_parameter("last.bias").data.zero_()

    rates: list[float] = []
    tuned = tune(replace(PLAIN, lr=1e-9), before_step=before, on_step=lambda step: rates.append(step.lr))
    assert told == [(i, 8, True) for i in range(8)]
    assert (
        float(tuned.get_parameter("last.bias").detach().abs().max())
        < 1e-6
        < float(seeded().last.bias.detach().abs().max())
    )


def test_an_exported_graph_trains() -> None:
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    batch = torch.export.Dim("batch", min=1, max=64)
    graph = torch.export.export(model, (torch.zeros(2, 5),), dynamic_shapes=({0: batch},)).module()
    assert not torch.equal(flat(tune(model=graph)), flat(graph))
