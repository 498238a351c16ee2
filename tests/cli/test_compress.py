"""The command line of compress: one clear line and exit code 1 for bad input, 2 for bad usage, nothing half-written."""

import json
from pathlib import Path

import pytest

from lighten.cli import main

TASK = """
import sys
sys.path.insert(0, {root!r})
from tests.tiny import tiny_task
task = tiny_task()
def built():
    return tiny_task(name="built", train=None, loss=None)
number = 7
"""


@pytest.fixture
def task_file(tmp_path: Path) -> Path:
    path = tmp_path / "task.py"
    path.write_text(TASK.format(root=str(Path(__file__).parents[2])))
    return path


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(["compress", *args])
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


def test_json_on_stdout_and_the_files_on_disk(
    task_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ["--max-drop", "0.9", "--out", str(out), "--threads", "1", "--ratio", "0.5", "--format", "json"]
    code, stdout, _ = run(capsys, f"{task_file}:built", *options)
    assert code == 0
    data = json.loads(stdout)
    assert data == json.loads((out / "result.json").read_text())
    assert data["task"] == "built"
    assert [(c["ratio"], c["scheme"]) for c in data["candidates"]] == [(0.5, None), (0.5, "w8a8")]
    assert data["budget"] == {"max_drop": 0.9, "minimize": "latency", "accept": "interval"}
    assert sorted(path.name for path in out.iterdir()) == ["artifact", "plan.yaml", "report.html", "result.json"]


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (None, "", "There is no task file"),
        ("1 / 0", "", "raised ZeroDivisionError"),
        ("x = 1", "", "holds no Task named 'task'"),
        (TASK, ":number", "holds no Task named 'number' (found int)"),
    ],
)
def test_bad_task_files_get_one_line(
    content: str | None, name: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.py"
    if content is not None:
        path.write_text(content.format(root=str(Path(__file__).parents[2])))
    code, stdout, stderr = run(capsys, f"{path}{name}", "--max-drop", "0.01", "--out", str(tmp_path / "out"))
    assert (code, stdout) == (1, "")
    assert message in stderr
    assert stderr.strip().count("\n") == 0
    assert not (tmp_path / "out").exists()


def test_an_empty_calibration_set_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.py"
    path.write_text(TASK.format(root=str(Path(__file__).parents[2])) + "task = tiny_task(calibration=[])\n")
    code, _, stderr = run(capsys, str(path), "--max-drop", "0.01", "--out", str(tmp_path / "out"))
    assert code == 1
    assert "calibration set is empty" in stderr


def test_a_negative_drop_and_a_foreign_folder_are_refused(
    task_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, stderr = run(capsys, str(task_file), "--max-drop", "-1", "--out", str(tmp_path / "out"))
    assert code == 1
    assert "max_drop=-1.0 must be 0 or more" in stderr
    code, _, stderr = run(capsys, str(task_file), "--max-drop", "0.01", "--out", str(tmp_path))
    assert code == 1
    assert "exists with other content" in stderr


@pytest.mark.parametrize("args", [[], ["digits"], ["digits", "--max-drop", "much", "--out", "x"], ["digits", "--no"]])
def test_bad_usage_exits_with_2(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, *args)[0] == 2


def test_where_work_is_done_is_checked_before_it_begins(
    task_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(task_file), "--max-drop", "0.1", "--out", str(tmp_path / "out")]
    code, _, stderr = run(capsys, *given, "--target-label", "pi")
    assert code == 1
    assert "target_label='pi' needs ray=ADDRESS" in stderr
    assert run(capsys, *given, "--workers", "0")[0] == 2
    assert not (tmp_path / "out").exists()
