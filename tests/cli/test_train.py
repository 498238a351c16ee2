import json
from pathlib import Path

import pytest
import torch

from lighten.cli import main
from lighten.task import load_task
from tests.tasks.idx_files import write_fashion


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LIGHTEN_CACHE", str(tmp_path / "cache"))
    return write_fashion(tmp_path / "[data]", n_train=264, n_test=40)


def lighten(*args: object) -> int:
    """The exit code of the command line."""
    with pytest.raises(SystemExit) as end:
        main([str(arg) for arg in args])
    assert isinstance(end.value.code, int)
    return end.value.code


def test_train_end_to_end(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert lighten("train", "fashion-mnist", "--data", data, "--epochs", 3, "--seed", 5, "--format", "json") == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert (result["task"], result["epochs"], result["seed"]) == ("fashion-mnist", 3, 5)
    assert (result["metric"]["name"], result["metric"]["n"]) == ("accuracy", 40)
    assert "epoch 3/3" in err

    task = load_task("fashion-mnist", data=data, epochs=3, seed=5)
    assert Path(result["checkpoint"]).is_file()
    right = sum(int(task.model(inputs[None]).argmax() == target) for inputs, target in task.holdout)
    assert result["metric"]["value"] == pytest.approx(right / 40)


def test_text_says_the_accuracy_and_where_the_checkpoint_lies(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert lighten("train", "fashion-mnist", "--data", data, "--epochs", 1) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "on 40 holdout samples" in err
    checkpoint = next((data.parent / "cache").iterdir())
    assert str(checkpoint) in err


def test_the_same_seed_gives_the_same_weights(data: Path) -> None:
    def weights() -> torch.Tensor:
        assert lighten("train", "fashion-mnist", "--data", data, "--epochs", 1) == 0
        model = load_task("fashion-mnist", data=data, epochs=1).model
        return torch.cat([parameter.flatten() for parameter in model.parameters()])

    assert torch.equal(weights(), weights())


def test_a_refusal_is_one_line_and_exit_code_1(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gone = data / "[bold]gone"  # square brackets must not be read as markup
    assert lighten("train", "fashion-mnist", "--data", gone) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: There is no Fashion-MNIST data at '{gone}'.")
    assert err.count("\n") == 1


def test_refusals_name_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert lighten("train", "fashion") == 1
    assert "Did you mean 'fashion-mnist'?" in capsys.readouterr().err
    assert lighten("train", "digits", "--data", "somewhere") == 1
    assert "Task 'digits' has no option 'data'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "args", [["train"], ["train", "digits", "--epochs", "0"], ["nonsense"], ["train", "--nonsense"]]
)
def test_bad_usage_is_exit_code_2(args: list[str]) -> None:
    assert lighten(*args) == 2
