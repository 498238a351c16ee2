import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lighten.errors import ConfigError, TaskError
from lighten.graph.count import count_parameters
from lighten.plan import Plan
from lighten.prune.gradual import PruneStep, prune_gradually, recipe_of
from lighten.prune.masks import masks
from lighten.prune.schedules import ratios
from lighten.recover.finetune import FineTuneConfig
from lighten.task import evaluate
from tests.tiny import Inputs, images, tiny_task


def test_the_steps_by_hand() -> None:
    assert ratios("one-shot", 0.9) == [0.9]
    assert ratios("iterative:2", 0.75) == pytest.approx([0.5, 0.75])
    assert ratios("cubic:2", 0.8) == pytest.approx([0.7, 0.8])


@given(kind=st.sampled_from(["iterative", "cubic", "gradual"]), n=st.integers(1, 20), final=st.floats(0, 0.999))
def test_steps_rise_to_the_ratio(kind: str, n: int, final: float) -> None:
    steps = ratios(f"{kind}:{n}", final)
    assert len(steps) == n
    assert steps[-1] == final
    assert all(0 <= a <= b + 1e-12 for a, b in itertools.pairwise(steps))


@pytest.mark.parametrize("schedule", ["cubic", "cubic:0", "cubic:-1", "cubic:2.5", "linear:3", ""])
def test_unknown_schedules_are_refused(schedule: str) -> None:
    with pytest.raises(ConfigError, match=r"is unknown\. Use one of one-shot"):
        ratios(schedule, 0.5)
    with pytest.raises(ConfigError, match=r"outside \[0, 1\)"):
        ratios("cubic:2", 1.0)


RECIPE = FineTuneConfig(epochs=1, lr=0.02, batch_size=64)


def test_weights_that_a_step_prunes_stay_pruned_and_accuracy_comes_back() -> None:
    seen: list[PruneStep] = []
    task = tiny_task()
    pruned = prune_gradually(
        task, 0.9, schedule="cubic:3", granularity="element", importance="l1", fine_tuning=RECIPE, on_prune=seen.append
    )
    assert [(s.step, s.n_steps) for s in seen] == [(1, 3), (2, 3), (3, 3)]
    for earlier, later in itertools.pairwise(seen):
        for name, mask in masks(later.model).items():
            assert not (mask & ~masks(earlier.model)[name]).any()
    sizes = [mask.numel() for mask in masks(pruned).values()]
    zeros = [int((pruned.get_parameter(name) == 0).sum()) for name in masks(pruned)]
    assert sum(zeros) == round(0.9 * sum(sizes))
    assert (pruned.plan.ratio, pruned.plan.epochs) == (0.9, 3)
    assert evaluate(pruned, task.selection, task.metric, 100).interval.value > 0.9


@pytest.mark.parametrize("importance", ["l1", "sparsegpt"])
def test_the_ratio_rises_within_one_training(importance: str) -> None:
    seen: list[PruneStep] = []
    rates: list[float] = []
    task = tiny_task()
    recipe = replace(RECIPE, epochs=3)
    pruned = prune_gradually(
        task,
        0.9,
        schedule="gradual:4",
        granularity="element",
        importance=importance,
        fine_tuning=recipe,
        on_prune=seen.append,
        on_step=lambda step: rates.append(step.lr),
    )
    assert [s.step for s in seen] == [1, 2, 3, 4]
    assert [s.ratio for s in seen] == ratios("cubic:4", 0.9)
    for earlier, later in itertools.pairwise(seen) if importance == "l1" else ():
        for name, mask in masks(later.model).items():
            assert not (mask & ~masks(earlier.model)[name]).any()
    kept = masks(pruned)
    assert all(torch.equal(mask, masks(seen[-1].model)[name]) for name, mask in kept.items())
    assert all((pruned.get_parameter(name)[~mask] == 0).all() for name, mask in kept.items())
    assert not any(torch.equal(pruned.get_parameter(name), seen[-1].model.get_parameter(name)) for name in kept)
    peak = rates.index(max(rates))  # one schedule of the rate, not one a step
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert (pruned.plan.ratio, pruned.plan.schedule, pruned.plan.epochs) == (0.9, "gradual:4", 3)
    assert pruned.plan.layers["conv1"].sparsity == 1 - float(kept["conv1.weight"].double().mean())
    assert evaluate(pruned, task.selection, task.metric, 100).interval.value > 0.9


@pytest.mark.parametrize("granularity", ["channel", "element"])
def test_a_plan_says_how_to_do_it_again(granularity: str) -> None:
    task = tiny_task()
    settings = {"scope": "layer", "overrides": {"conv1": 0.25}, "exclude": ["fc"], "granularity": granularity}
    pruned = prune_gradually(task, 0.75, schedule="cubic:2", importance="random", fine_tuning=None, **settings)
    plan = Plan.from_dict(pruned.plan.to_dict())
    again = prune_gradually(task, **recipe_of(plan))
    assert again.plan == pruned.plan
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), pruned.parameters(), strict=True))
    if granularity == "channel":
        assert {name: layer.kept for name, layer in plan.layers.items()} == {"conv1": 12}  # conv2 is read by fc alone
    with pytest.raises(ConfigError, match="prunes nothing"):
        recipe_of(Plan())


def test_channels_reach_the_ratio_of_the_original() -> None:
    task = tiny_task()
    gradual = prune_gradually(task, 0.75, schedule="iterative:2", scope="layer")
    assert gradual.get_parameter("conv1.weight").shape[0] == 4
    assert gradual.get_parameter("conv2.weight").shape[0] == 8
    whole = prune_gradually(task, 0.75, scope="layer")
    assert count_parameters(gradual) == count_parameters(whole)
    assert gradual.plan.layers == whole.plan.layers  # both tell of the original's channels
    assert gradual.plan.epochs == 0


@pytest.mark.parametrize("importance", ["wanda", "obd", "sparsegpt"])
def test_methods_that_look_at_data_get_it_from_the_task(importance: str) -> None:
    pruned = prune_gradually(tiny_task(), 0.5, granularity="element", importance=importance)
    assert pruned.plan.importance == importance


def test_what_cannot_be_done_is_refused() -> None:
    with pytest.raises(ConfigError, match="fixes its ratio and cannot rise to it"):
        prune_gradually(tiny_task(), 0.5, granularity="2:4", schedule="cubic:2")
    with pytest.raises(ConfigError, match=r"cannot be used with granularity='channel'\. Use cubic:n"):
        prune_gradually(tiny_task(), 0.5, schedule="gradual:2", fine_tuning=RECIPE)
    with pytest.raises(ConfigError, match=r"without it\. Give it epochs"):
        prune_gradually(tiny_task(), 0.5, granularity="element", schedule="gradual:2")
    unlabelled = tiny_task(train=None, loss=None)
    with pytest.raises(TaskError, match=r"has no training data.*Give teacher= and distill_weight=1"):
        prune_gradually(unlabelled, 0.5, fine_tuning=RECIPE)
    with pytest.raises(TaskError, match="has no training data"):
        prune_gradually(unlabelled, 0.5, fine_tuning=replace(RECIPE, distill_weight=0.5), teacher=unlabelled.model)


def test_a_task_without_labels_recovers_by_its_own_model() -> None:
    task = tiny_task(train=None, loss=None, calibration=Inputs(images(512, 1)[0]))
    settings = {"scope": "layer", "importance": "random"}
    recipe = replace(RECIPE, epochs=3, distill_weight=1.0)
    broken = prune_gradually(task, 0.95, **settings)
    tuned = prune_gradually(task, 0.95, fine_tuning=recipe, teacher=task.model, **settings)
    before, after = (evaluate(model, task.selection, task.metric, 100).interval for model in (broken, tuned))
    assert before.high < after.low
    assert tuned.plan.epochs == 3


def test_the_tasks_model_is_not_modified() -> None:
    task = tiny_task()
    before = {key: value.clone() for key, value in task.model.state_dict().items()}
    prune_gradually(task, 0.5, granularity="2:4", exclude=["conv1"], fine_tuning=RECIPE)
    assert all(torch.equal(value, before[key]) for key, value in task.model.state_dict().items())
