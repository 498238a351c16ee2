import json
from pathlib import Path

import pytest
import torch

import lighten
from lighten.cli import main
from lighten.prune.masks import masks
from tests.tiny import TinyNet

TASK = """
import sys
sys.path.insert(0, {root!r})
from tests.tiny import tiny_task
task = tiny_task()
bare = tiny_task(train=None, loss=None)
"""


@pytest.fixture
def task_file(tmp_path: Path) -> Path:
    path = tmp_path / "task.py"
    path.write_text(TASK.format(root=str(Path(__file__).parents[2])))
    return path


def run(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(["prune", *map(str, args)])
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


def test_json_on_stdout_and_a_checkpoint_that_restores(
    task_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    args = ["--ratio", 0.8, "--granularity", "element", "--importance", "taylor", "--out", out, "--format", "json"]
    code, _, err = run(capsys, task_file, *args)
    assert (code, out.exists()) == (1, False)
    assert "no importance criterion for single weights 'taylor'" in err
    args[5] = "l1"
    code, stdout, _ = run(capsys, task_file, *args, "--schedule", "cubic:2", "--epochs", 1, "--exclude", "conv1")
    assert code == 0
    result = json.loads(stdout)
    assert (result["task"], result["ratio"], result["schedule"], result["epochs"]) == ("tiny", 0.8, "cubic:2", 2)
    assert result["skipped"] == {"conv1": "not pruned: excluded"}
    for when in ("before", "after"):
        low, high = result[when]["holdout"]["ci95"]
        assert low <= result[when]["holdout"]["value"] <= high
        assert result[when]["selection"]["n"] == 200
    assert result["after"]["sparsity"] == pytest.approx(0.8, abs=0.02)
    assert result["before"]["macs"] == result["after"]["macs"]
    restored = lighten.restore(TinyNet(), out)
    assert list(masks(restored)) == ["conv2.weight", "fc.weight"]
    assert restored.plan.epochs == 2
    assert restored(torch.zeros(3, 1, 8, 8)).shape == (3, 4)


def test_text_is_a_table_on_stderr(task_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, stdout, err = run(
        capsys, f"{task_file}:bare", "--ratio", 0.5, "--granularity", "2:4", "--out", tmp_path / "out"
    )
    assert (code, stdout) == (0, "")
    for piece in ("accuracy, holdout", "200 samples", "parameters", "MACs a sample", "sparsity", "saved:"):
        assert piece in err
    assert "conv1: not pruned: 2:4 needs a multiple of 4 inputs, and it has 1" in err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--ratio", "1.5"], "ratio=1.5 is outside"),
        (["--ratio", "0.5", "--granularity", "atoms"], "granularity='atoms' is not available"),
        (["--ratio", "0.5", "--schedule", "cubic"], "schedule='cubic' is unknown"),
        (["--ratio", "0.5", "--granularity", "element", "--importance", "magic"], "There is no importance criterion"),
    ],
)
def test_a_refusal_is_one_line_and_exit_code_1(
    args: list[str], message: str, task_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, stdout, err = run(capsys, task_file, *args, "--out", tmp_path / "out")
    assert (code, stdout) == (1, "")
    assert message in err
    assert err.strip().count("\n") == 0
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_written_or_trained_is_refused_first(
    task_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "exists with other content" in run(capsys, task_file, "--ratio", 0.5, "--out", tmp_path)[2]
    _, _, err = run(capsys, f"{task_file}:bare", "--ratio", 0.5, "--epochs", 2, "--out", tmp_path / "out")
    assert "--epochs 2 is impossible. Use --epochs 0" in err


@pytest.mark.parametrize("args", [[], ["digits"], ["digits", "--ratio", "half", "--out", "x"]])
def test_bad_usage_exits_with_2(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, *args)[0] == 2


def test_layers_are_refitted_on_request(task_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--ratio", 0.5, "--epochs", 0, "--format", "json"]
    results = {}
    for flag in ("--refit", "--no-refit"):
        code, stdout, _ = run(capsys, task_file, *args, flag, "--out", tmp_path / flag)
        assert code == 0
        results[flag] = json.loads(stdout)
        assert lighten.restore(TinyNet(), tmp_path / flag).plan.refit == (flag == "--refit")
    assert results["--refit"]["after"]["n_params"] == results["--no-refit"]["after"]["n_params"]
    assert results["--refit"]["drop_selection"]["value"] <= results["--no-refit"]["drop_selection"]["value"]
