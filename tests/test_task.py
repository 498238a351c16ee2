from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lighten.errors import TaskError
from lighten.metric import ACCURACY
from lighten.task import Task, as_args, batches, evaluate, load_task
from lighten.tasks.samples import Samples

TASK_FILE = """
import torch
from lighten.task import Task
from lighten.tasks.samples import Samples

pairs = Samples(torch.zeros(4, 2), torch.zeros(4, dtype=torch.long))
made = Task(name="made", model=torch.nn.Linear(2, 2), example_inputs=(torch.zeros(1, 2),),
            calibration=Samples(torch.zeros(4, 2)), selection=pairs, holdout=pairs)

def task():
    return made

def breaks():
    raise ValueError("no such disk")
"""


def make(**changes: Any) -> Task:
    pairs = Samples(torch.zeros(4, 2), torch.zeros(4, dtype=torch.long))
    settings: dict[str, Any] = {
        "name": "toy",
        "model": nn.Linear(2, 2),
        "example_inputs": (torch.zeros(1, 2),),
        "calibration": Samples(torch.zeros(4, 2)),
        "selection": pairs,
        "holdout": pairs,
    }
    return Task(**(settings | changes))


@pytest.mark.parametrize("field", ["calibration", "selection", "holdout", "train"])
def test_an_empty_set_is_refused_by_name(field: str) -> None:
    with pytest.raises(TaskError, match=f"its {field} set is empty"):
        make(**{field: Samples(torch.zeros(0, 2), torch.zeros(0)), "loss": nn.functional.cross_entropy})


def test_training_data_without_a_loss_is_refused() -> None:
    with pytest.raises(TaskError, match="has training data but no loss"):
        make(train=make().holdout)


def test_example_inputs_that_are_no_tuple_are_refused() -> None:
    with pytest.raises(TaskError, match="example_inputs is a Tensor"):
        make(example_inputs=torch.zeros(1, 2))


def test_several_inputs_are_positional_arguments() -> None:
    a, b = torch.zeros(1), torch.ones(1)
    assert as_args(a) == (a,)
    assert as_args([a, b]) == (a, b)


def test_batches_keep_the_order_and_the_short_last_one() -> None:
    data = Samples(torch.arange(5.0)[:, None], torch.arange(5))
    assert [targets.tolist() for _, targets in batches(data, 2)] == [[0, 1], [2, 3], [4]]


def test_reading_draws_nothing_from_the_global_generator() -> None:
    before = torch.get_rng_state()
    list(batches(Samples(torch.zeros(5, 1)), 2))
    assert torch.equal(torch.get_rng_state(), before)


def test_evaluate_scores_in_eval_mode_without_gradients() -> None:
    class AlwaysSecond(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert not self.training
            assert not torch.is_grad_enabled()
            return torch.tensor([[0.0, 1.0]]).expand(len(x), 2)

    data = Samples(torch.zeros(5, 3), torch.tensor([1, 0, 1, 1, 0]))
    assert evaluate(AlwaysSecond().train(), data, ACCURACY, 2).interval.value == pytest.approx(0.6)


@pytest.fixture
def task_file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(TASK_FILE)
    return path


@pytest.mark.parametrize("suffix", ["", ":task", ":made"], ids=["default", "function", "object"])
def test_a_task_file_gives_its_task(task_file: Path, suffix: str) -> None:
    assert load_task(f"{task_file}{suffix}").name == "made"


@pytest.mark.parametrize(
    ("suffix", "words"),
    [
        (":nothing", "holds no Task named 'nothing'.*Tasks in it: made"),
        (":pairs", "found Samples"),
        (":breaks", "raised ValueError: no such disk"),
    ],
)
def test_a_name_without_a_task_is_refused(task_file: Path, suffix: str, words: str) -> None:
    with pytest.raises(TaskError, match=words):
        load_task(f"{task_file}{suffix}")


def test_a_file_that_is_missing_or_raises_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="There is no task file"):
        load_task(str(tmp_path / "gone.py"))
    (tmp_path / "bad.py").write_text("1 / 0")
    with pytest.raises(TaskError, match="raised ZeroDivisionError"):
        load_task(str(tmp_path / "bad.py"))


def test_options_are_for_built_in_tasks(task_file: Path) -> None:
    assert load_task(str(task_file), data=None).name == "made"
    with pytest.raises(TaskError, match="takes no options, but got data"):
        load_task(str(task_file), data="somewhere")


def test_an_unknown_task_or_option_names_the_known_ones() -> None:
    with pytest.raises(TaskError, match="Built in: digits, fashion-mnist"):
        load_task("digit")
    with pytest.raises(TaskError, match=r"Task 'digits' has no option 'data'\. Its options: seed, epochs"):
        load_task("digits", data="somewhere")
