import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor, nn

from lighten.errors import ArtifactError, ConfigError
from lighten.prune.gradual import prune_gradually
from lighten.prune.masks import masks
from lighten.recover.finetune import FineTuneConfig, Recovery, Step, recover
from lighten.recover.weights import named_tensors
from lighten.tasks.samples import Samples
from tests.recover.test_finetune import PLAIN, Pictures, data, seeded
from tests.tiny import tiny_task


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums are taken in one order, so that equal means equal bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Killed(Exception):  # noqa: N818  no error: it is what the test does
    pass


def killed_at(steps: set[int]) -> Callable[[Step], None]:
    """Dies once at each of these steps."""
    left = set(steps)

    def on_step(step: Step) -> None:
        if step.step in left:
            left.remove(step.step)
            raise Killed

    return on_step


def until_done(train: Callable[[], Any]) -> Any:
    while True:
        try:
            return train()
        except Killed:
            pass


def same_tensors(one: nn.Module, other: nn.Module) -> bool:
    ours, theirs = named_tensors(one), named_tensors(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def noisy() -> Samples:
    """Samples that draw from torch's generator, as augmentation does."""
    return Samples(data().inputs, data().targets, lambda batch: batch + 0.1 * torch.randn_like(batch))


EPOCHS = 4  # of 4 steps


def run(config: FineTuneConfig, model: nn.Module | None = None, **more: Any) -> Recovery:
    def score(model: nn.Module) -> float:
        return -F.cross_entropy(model(data().inputs), data().targets).item()

    teacher = seeded(7) if config.distill_weight else None
    return recover(model or seeded(), noisy(), F.cross_entropy, config, score=score, teacher=teacher, **more)


@pytest.mark.parametrize(
    "change",
    [{}, {"distill_weight": 0.5, "grad_clip": 0.1, "ema": 0.8}, {"patience": 1, "lr": 1.0}, {"optimizer": "adamw"}],
    ids=["plain", "distilled-average", "stopped", "adamw"],
)
def test_what_was_killed_ends_as_what_was_left_alone(tmp_path_factory: Any, change: dict[str, Any]) -> None:
    config = replace(PLAIN, epochs=EPOCHS, **change)
    whole = run(config)
    assert whole.stopped_early == ("patience" in change)

    @settings(max_examples=8)
    @given(deaths=st.sets(st.integers(1, 4 * EPOCHS), max_size=3), every=st.none() | st.integers(1, 7))
    def check(deaths: set[int], every: int | None) -> None:
        on_step = killed_at(deaths)
        path = tmp_path_factory.mktemp("training") / "deep" / "c.safetensors"
        found = until_done(lambda: run(config, checkpoint=path, every=every, on_step=on_step))
        assert same_tensors(found.model, whole.model)
        assert (found.scores, found.best, found.stopped_early) == (whole.scores, whole.best, whole.stopped_early)
        assert [file.name for file in path.parent.iterdir()] == ["c.safetensors"]

    check()


def test_only_what_is_left_is_trained(tmp_path: Path) -> None:
    path, config = tmp_path / "c.safetensors", replace(PLAIN, epochs=EPOCHS)
    with pytest.raises(Killed):
        run(config, checkpoint=path, every=3, on_step=killed_at({11}))
    steps: list[Step] = []
    first = run(config, checkpoint=path, every=3, on_step=steps.append)
    assert [(step.step, step.epoch) for step in steps] == [(s, (s - 1) // 4 + 1) for s in range(10, 17)]
    steps.clear()
    again = run(config, checkpoint=path, every=3, on_step=steps.append)
    assert not steps
    assert same_tensors(first.model, again.model)


def test_momentum_keeps_the_layout_of_its_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Pictures(view=False), torch.randn(12, 2, 5, 5)
    train, path = Samples(x, x[:, 0, 0, :3].argmax(-1)), tmp_path / "c.safetensors"
    config = replace(PLAIN, channels_last=True)
    whole = recover(model, train, F.cross_entropy, config)
    on_step = killed_at({2, 5})
    found = until_done(
        lambda: recover(model, train, F.cross_entropy, config, checkpoint=path, every=1, on_step=on_step)
    )
    assert same_tensors(found.model, whole.model)


@pytest.mark.parametrize(
    ("schedule", "importance"),
    [("gradual:4", "l1"), ("gradual:4", "sparsegpt"), ("cubic:2", "l1"), ("iterative:2", "channels")],
)
def test_what_prunes_on_the_way_goes_on_too(tmp_path: Path, schedule: str, importance: str) -> None:
    task = tiny_task(train=torch.utils.data.Subset(tiny_task().train, range(160)))  # type: ignore[arg-type]
    how: dict[str, Any] = {"granularity": "element", "importance": importance}
    if importance == "channels":
        how = {"granularity": "channel", "importance": "l2", "scope": "layer"}
    recipe = FineTuneConfig(epochs=3, lr=0.02, batch_size=32, ema=0.9)
    whole = prune_gradually(task, 0.8, schedule=schedule, fine_tuning=recipe, **how)
    on_step = killed_at({2, 9, 12})
    found = until_done(
        lambda: prune_gradually(
            task, 0.8, schedule=schedule, fine_tuning=recipe, checkpoints=tmp_path, every=2, on_step=on_step, **how
        )
    )
    assert same_tensors(found, whole)
    assert masks(found).keys() == masks(whole).keys()
    assert found.plan == whole.plan


def test_another_training_is_refused_by_what_differs(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    run(PLAIN, checkpoint=path)
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=r"is of another training: it has lr 0.1, here 0.2\. Go on with"):
        run(replace(PLAIN, lr=0.2), checkpoint=path)
    with pytest.raises(ConfigError, match="it has other parameter names and shapes"):
        run(PLAIN, nn.Linear(5, 3), checkpoint=path)
    with pytest.raises(ConfigError, match="it has training samples 18, here 12"):
        recover(seeded(), data(12), F.cross_entropy, PLAIN, checkpoint=path)
    assert path.read_bytes() == before


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    run(PLAIN, checkpoint=path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ArtifactError, match=r"or is damaged: .* Delete it to start anew"):
        run(PLAIN, checkpoint=path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="Cannot write the checkpoint"):
        run(PLAIN, checkpoint=tmp_path / "file" / "c.safetensors")
    with pytest.raises(ConfigError, match="every=2 with checkpoint=None"):
        run(PLAIN, every=2)
    with pytest.raises(ConfigError, match="every=0"):
        run(PLAIN, checkpoint=path, every=0)


def test_a_checkpoint_is_tensors_and_json(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    run(PLAIN, checkpoint=path)
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["lighten_training"])
        names = set(file.keys())
    assert (header["step"], header["training"]["lr"]) == (8, 0.1)
    assert {"model/first.weight", "best/first.weight", "random/torch/0", "random/order"} <= names
    assert sum(name.startswith("optimizer/") for name in names) == 6  # a momentum for each parameter


def test_a_write_that_fails_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.safetensors"
    with pytest.raises(Killed):
        run(PLAIN, checkpoint=path, every=2, on_step=killed_at({5}))
    whole = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ArtifactError, match="No space left on device"):
        run(PLAIN, checkpoint=path, every=2)
    assert path.read_bytes() == whole
    assert list(tmp_path.iterdir()) == [path]


def test_a_tensor_of_an_optimizer_can_have_any_place(tmp_path: Path) -> None:
    from lighten.recover.checkpoint import _packed, _unpacked

    tensors: dict[str, Tensor] = {}
    state = {0: {"step": torch.tensor(3.0), "betas": (0.9, 0.999)}, "groups": [{"lr": 0.1, "on": None, "flag": True}]}
    packed = json.loads(json.dumps(_packed(state, tensors)))
    assert _unpacked(packed, tensors) == state
    with pytest.raises(ConfigError, match="keeps a object, which a checkpoint cannot hold"):
        _packed({"a": object()}, tensors)
