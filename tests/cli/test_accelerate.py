"""The command line of accelerate: a table for people, JSON for programs, one line for a refusal."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from lighten import accelerate as package
from lighten.cli import main
from lighten.cli.accelerate import unsteadiness, verdict
from lighten.runtime import contest
from lighten.runtime.final import FinalConfig
from lighten.runtime.runner import load
from tests.runtime.models import write_linear

TASK = """
import sys
sys.path.insert(0, {root!r})
from tests.tiny import tiny_task
task = tiny_task()
"""
TRIAL = {
    **{"name": "onnxruntime, 2 threads", "way": "onnxruntime", "threads": 2, "median_ms": 1.5, "p90_ms": 1.75},
    **{"cold_start_ms": 400.0, "difference": 2e-7, "slowdown": {"value": 1.0, "ci95": [1.0, None]}, "refused": ""},
}
BAD = {**TRIAL, "name": "torch compiled, 2 threads", "refused": "there is no C++ compiler"}
LATENCY = {
    **{
        "mode": "latency",
        "batch": 1,
        "cores": 2,
        "blocks": {"products": 0, "changed": []},
        "tolerance": 1e-3,
        "winner": TRIAL["name"],
        "difference": 2e-7,
    },
    **{"latency_ms": {"median": 1.5, "p90": 1.75}, "trials": [TRIAL, BAD]},
    "steadiness": {"rounds": 5, "is_steady": False, "moved_most": TRIAL["name"], "span_ms": [1.0, 1.8]},
    "speedup": {"over": "onnxruntime, 2 threads", "value": 1.0, "ci95": [1.0, 1.0], "is_different": False},
}
THROUGHPUT = {
    **{key: value for key, value in LATENCY.items() if key != "steadiness"},
    **{"mode": "throughput", "workers": 4, "samples_per_s": 321.4, "efficiency": 0.8},
    "trials": [{**TRIAL, "workers": 4, "samples_per_s": 321.4}, BAD],
    "speedup": {"over": "onnxruntime, 4 threads", "value": 2.0, "ci95": [1.5, 2.5], "is_different": True},
}

PARTS = [
    {
        "runtime": "native",
        "macs": 1234,
        "macs_by_zero": 1000,
        "operators": {"aten.linear.default": 2},
        "nodes": [],
        "why": {},
    },
    {
        "runtime": "onnxruntime",
        "macs": 0,
        "macs_by_zero": 0,
        "operators": {"aten.sort.stable": 1},
        "nodes": [],
        "why": {"no": ["sort"]},
    },
]


@pytest.fixture
def task_file(tmp_path: Path) -> Path:
    path = tmp_path / "task.py"
    path.write_text(TASK.format(root=str(Path(__file__).parents[2])))
    return path


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the command asks the library for, which writes a stand-in."""
    seen: dict[str, Any] = {}

    def fake(model: Any, example_inputs: Any, out_dir: Path, **settings: Any) -> Any:
        seen.update(settings, inputs=example_inputs)
        notes = THROUGHPUT if settings["mode"] == "throughput" else LATENCY
        return write_linear(out_dir, notes={"accelerate": notes, "parts": PARTS})

    monkeypatch.setattr(package, "accelerate", fake)
    return seen


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(["accelerate", *args])
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


def test_a_table_and_a_verdict(
    task_file: Path, tmp_path: Path, asked: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    code, stdout, stderr = run(capsys, str(task_file), "--out", str(tmp_path / "out"), "--batch", "3", "--threads", "2")
    assert (code, stdout) == (0, "")
    assert (asked["mode"], asked["threads"]) == ("latency", 2)
    (x,) = asked["inputs"]
    assert x.shape == (3, 1, 8, 8)
    assert x.std() > 0
    assert "1.00 (1.00 to ?)" in stderr
    assert "refused: torch compiled, 2 threads: there is no C++ compiler" in stderr
    assert "1.500 ms. Plain ONNX Runtime, which export writes, is the fastest already." in stderr
    assert "part 0 on native: 2 operators, 1,234 multiplications by weights, 1,000 of them by zero" in stderr
    assert "part 1 on onnxruntime: 1 operators, 0 multiplications by weights, 0 of them by zero; sort: no" in stderr
    assert "not steady: over 5 rounds and a first look onnxruntime, 2 threads took 1.000 to 1.800 ms" in stderr


def test_throughput_shows_samples_a_second(
    task_file: Path, tmp_path: Path, asked: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, stderr = run(capsys, str(task_file), "--out", str(tmp_path / "out"), "--throughput")
    assert (code, asked["mode"], asked["threads"]) == (0, "throughput", None)
    assert "× 4 workers: 321 samples/s, scaling efficiency 80%, 2.00 (1.50 to 2.50) times as fast as plain" in stderr


def test_json_holds_every_trial(
    task_file: Path, tmp_path: Path, asked: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    code, stdout, _ = run(capsys, str(task_file), "--out", str(out), "--latency", "--format", "json")
    assert (code, asked["mode"]) == (0, "latency")
    data = json.loads(stdout)
    assert (data["artifact"], data["runtime"], len(data["trials"])) == (str(out), "onnxruntime", 2)
    assert data["parts"] == PARTS


def test_a_difference_is_claimed_only_where_it_is_shown() -> None:
    other = {**LATENCY, "winner": "openvino, 1 thread"}
    assert "No difference from plain ONNX Runtime (onnxruntime, 2 threads) is shown" in verdict(other)
    assert "does not run this model" in verdict({**other, "speedup": None})


def test_a_steady_machine_is_not_worth_a_word() -> None:
    assert unsteadiness({**LATENCY, "steadiness": {**LATENCY["steadiness"], "is_steady": True}}) == []
    assert unsteadiness(THROUGHPUT) == []


def test_what_is_refused_gets_one_line(task_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for args, message in (
        ([str(task_file), "--out", str(tmp_path)], "exists with other content"),
        ([str(task_file), "--out", str(tmp_path / "out"), "--batch", "65"], "has 64 calibration samples, too few for"),
        ([str(tmp_path / "no.py"), "--out", str(tmp_path / "out")], "There is no task file"),
    ):
        code, stdout, stderr = run(capsys, *args)
        assert (code, stdout) == (1, "")
        assert message in stderr
        assert stderr.strip().count("\n") == 0
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("args", [[], ["digits"], ["digits", "--out", "x", "--batch", "0"], ["digits", "--fast"]])
def test_bad_usage_exits_with_2(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, *args)[0] == 2


def test_the_command_end_to_end(
    task_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from lighten.accelerate import drafts

    every = drafts.ways
    monkeypatch.setattr(drafts, "ways", lambda captured: [w for w in every(captured) if w.runtime == "onnxruntime"])
    monkeypatch.setattr(contest, "FinalConfig", partial(FinalConfig, pause_s=0.0))
    out = tmp_path / "out"
    code, stdout, _ = run(capsys, str(task_file), "--out", str(out), "--threads", "1", "--format", "json")
    assert code == 0
    assert json.loads(stdout)["winner"] == "onnxruntime, 1 thread"
    assert load(out)(torch.zeros(1, 1, 8, 8)).shape == (1, 4)
