import json
from pathlib import Path
from typing import Any

import pytest

from lighten.cli import main
from lighten.plan import Plan
from lighten.report import render


def run(*args: str) -> int | str | None:
    with pytest.raises(SystemExit) as ended:
        main(["report", *args])
    return ended.value.code


def test_it_rebuilds_the_page_that_the_run_wrote(
    result: dict[str, Any], plan: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "result.json").write_text(json.dumps(result))
    plan.save(tmp_path / "plan.yaml")
    assert run(str(tmp_path), "--format", "json") == 0
    page = tmp_path / "report.html"
    assert json.loads(capsys.readouterr().out) == {"report": str(page)}
    assert page.read_text(encoding="utf-8") == render(result, plan)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "Cannot read"), ("{", "is not JSON"), ("\udcff", "is not JSON"), ("[1]", "holds a list, not a mapping")],
    ids=["missing", "broken", "binary", "list"],
)
def test_a_result_that_cannot_be_read_is_one_line_and_exit_1(
    content: str | None, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "result.json").write_bytes(content.encode(errors="surrogateescape"))
    assert run(str(tmp_path)) == 1
    errors = capsys.readouterr().err
    assert reason in errors
    assert errors.count("\n") == 1
    assert not (tmp_path / "report.html").exists()


def test_a_missing_plan_is_one_line_and_exit_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "result.json").write_text("{}")
    assert run(str(tmp_path)) == 1
    assert "Cannot read the plan" in capsys.readouterr().err


def test_a_missing_folder_is_bad_usage(tmp_path: Path) -> None:
    assert run(str(tmp_path / "nowhere")) == 2
