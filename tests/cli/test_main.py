import subprocess
import sys

import pytest

from lighten import cli
from lighten.errors import LightenError


def raising(error: BaseException) -> object:
    def app(args: object) -> None:
        raise error

    return app


def test_a_refusal_of_several_lines_becomes_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "app", raising(LightenError("one [red]\ntwo " + "x" * 200)))
    with pytest.raises(SystemExit) as end:
        cli.main([])
    assert end.value.code == 1
    assert capsys.readouterr().err == "error: one [red] two " + "x" * 200 + "\n"


def test_an_interrupt_is_exit_code_130(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "app", raising(KeyboardInterrupt()))
    with pytest.raises(SystemExit) as end:
        cli.main([])
    assert end.value.code == 130


def test_an_interrupt_inside_a_command_is_exit_code_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lighten.task.configure", interrupted)
    with pytest.raises(SystemExit) as end:
        cli.main(["train", "digits"])
    assert end.value.code == 130


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "app", raising(ZeroDivisionError("a bug")))
    with pytest.raises(ZeroDivisionError, match="a bug"):
        cli.main([])


def test_the_command_line_starts_without_torch() -> None:
    code = "import sys, lighten.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "lighten", "--help"], capture_output=True, text=True, check=True)
    assert "compress" in done.stdout
