import json

import pytest
from typer.testing import CliRunner

from lighten.errors import MissingExtraError
from lighten.runtime import machine
from lighten.runtime.backends import Description
from lighten.runtime.cpu import CPU


def cpu(**features: bool) -> CPU:
    architecture = "aarch64" if "neon_dotprod" in features else "x86_64"
    return CPU(name="some CPU", architecture=architecture, cores=4, memory_bytes=2**33, **features)


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (cpu(avx2=True, vnni=True), "all 8 bits"),
        (cpu(avx2=True), "7-bit weights"),
        (cpu(), "prune instead"),
        (cpu(neon_dotprod=True), "all 8 bits"),
        (cpu(neon_dotprod=False), "only if measured"),
    ],
)
def test_the_instructions_decide_the_scheme(found: CPU, says: str) -> None:
    assert says in machine.advise(found, [])[0]


def test_amx_cores_and_devices_are_spoken_of() -> None:
    devices = Description("onnxruntime", "1", ("CUDAExecutionProvider", "CPUExecutionProvider"))
    advice = " ".join(machine.advise(cpu(avx2=True, vnni=True, amx=True), [devices]))
    assert "AMX" in advice
    assert "4 cores: try 1 to 4 threads" in advice
    assert "onnxruntime offers CUDAExecutionProvider;" in advice
    assert "CUDA" not in " ".join(machine.advise(cpu(), []))
    assert "One core" in " ".join(machine.advise(CPU(name="", architecture="x86_64", cores=1), []))


def test_zeros_are_spoken_of_where_the_engine_is_there() -> None:
    native = [Description("native", "1", ("znver4",))]
    assert "4 to 8 times" in " ".join(machine.advise(cpu(avx512=True), native))
    assert "not measured yet" in " ".join(machine.advise(cpu(), native))
    assert "Zeros" not in " ".join(machine.advise(cpu(avx512=True), []))


def test_doctor_prints_data_on_stdout_and_a_table_on_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    from lighten.cli import app

    class Absent:
        def describe(self) -> Description:
            raise MissingExtraError("abacus is not installed")

    class Here:
        def describe(self) -> Description:
            return Description("here", "1.2", ("CPU",))

    monkeypatch.setattr(machine, "BACKENDS", ("here", "abacus"))
    monkeypatch.setattr(machine, "backend", lambda name: Here() if name == "here" else Absent())
    monkeypatch.setattr(machine, "this_cpu", lambda: cpu(avx2=True, vnni=True))
    result = CliRunner().invoke(app, ["doctor", "--format", "json"])
    data = json.loads(result.stdout)
    assert data["cpu"]["vnni"] is True
    assert data["runtimes"] == [{"name": "here", "version": "1.2", "devices": ["CPU"]}]
    assert data["missing"] == {"abacus": "abacus is not installed"}
    assert any("w8a8" in sentence for sentence in data["advice"])
    result = CliRunner().invoke(app, ["doctor"])
    assert result.stdout == ""
    shown = " ".join(result.stderr.split())  # lines are wrapped to the terminal
    for word in ("some CPU", "AVX2, VNNI", "8.0 GiB", "1.2: CPU", "abacus is not installed", "all 8 bits"):
        assert word in shown
