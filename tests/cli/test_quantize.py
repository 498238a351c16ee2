import json
from pathlib import Path

import pytest
import torch

import lighten
from lighten.cli import main
from tests.tiny import TinyNet, tiny_task

TASK = """
import sys
sys.path.insert(0, {root!r})
from tests.tiny import tiny_task
task = tiny_task()
"""


@pytest.fixture
def task_file(tmp_path: Path) -> Path:
    path = tmp_path / "task.py"
    path.write_text(TASK.format(root=str(Path(__file__).parents[2])))
    return path


def run(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(["quantize", *map(str, args)])
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


def test_json_on_stdout_and_a_checkpoint_that_restores(
    task_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    args = ["--scheme", "w4-g8; fc=w8", "--method", "gptq", "--exclude", "conv1", "--out", out, "--format", "json"]
    code, stdout, _ = run(capsys, task_file, *args)
    assert code == 0
    result = json.loads(stdout)
    assert result["layers"] == {
        "conv2": {"scheme": "w4-g8", "method": "gptq"},
        "fc": {"scheme": "w8", "method": "gptq"},
    }
    assert result["skipped"] == {"conv1": "not quantized: excluded"}
    assert result["after"]["tensor_bytes"] < result["before"]["tensor_bytes"] / 2
    assert result["after"]["files_bytes"] == sum(path.stat().st_size for path in out.iterdir())
    low, high = result["after"]["holdout"]["ci95"]
    assert low <= result["after"]["holdout"]["value"] <= high
    restored = lighten.restore(TinyNet(), out)
    task = tiny_task()
    again = lighten.quantize(
        task.model,
        "w4-g8; fc=w8",
        method="gptq",
        exclude=["conv1"],
        calibration=torch.utils.data.DataLoader(task.calibration, batch_size=task.batch_size),
    )
    x = task.example_inputs[0]
    assert torch.equal(restored(x), again(x))


def test_settings_of_static_schemes_reach_the_plan_and_an_artifact_is_written(
    task_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    how = ["--observer", "minmax", "--step", "equalization", "--step", "bias-correction", "--weight-bits", 6]
    code, stdout, err = run(capsys, task_file, "--scheme", "w8a8", *how, "--runtime", "onnxruntime", "--out", out)
    assert (code, stdout) == (0, "")
    for piece in ("w8a8 by rtn, 3 layers", "accuracy, holdout", "200 samples", "× smaller", "saved:"):
        assert piece in err
    plan = lighten.load(out).artifact.plan
    assert (plan.observer, plan.steps, plan.weight_bits) == ("minmax", ["equalization", "bias-correction"], 6)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--scheme", "w9"], "There is no scheme 'w9'"),
        (["--scheme", "w4", "--method", "rnt"], "Did you mean 'rtn'"),
        (["--scheme", "w4", "--observer", "mse"], "observer='mse' has no meaning for w4"),
        (["--scheme", "w8a8", "--step", "smooth"], "smooth"),
        (["--scheme", "w8a8", "--runtime", "abacus"], "Cannot export to the runtime 'abacus'"),
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


def test_a_folder_with_other_content_is_refused_before_anything_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    for runtime in ([], ["--runtime", "onnxruntime"]):
        code, _, err = run(capsys, "no-such-task", "--scheme", "w4", *runtime, "--out", tmp_path)
        assert code == 1
        assert "mine.txt" in err or "exists" in err
        assert "no-such-task" not in err


@pytest.mark.parametrize("args", [[], ["digits"], ["digits", "--scheme", "w4"]])
def test_bad_usage_exits_with_2(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, *args)[0] == 2
