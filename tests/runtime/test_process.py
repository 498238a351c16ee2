import sys
from pathlib import Path

import pytest

from lighten.errors import ArtifactError
from lighten.runtime.process import Process


@pytest.fixture
def talker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module that echoes a line, unless it is told to sleep or to die."""
    (tmp_path / "talker.py").write_text(
        "import json, sys, time\n"
        "for line in sys.stdin:\n"
        "    said = json.loads(line)\n"
        "    if said.get('sleep'): time.sleep(3600)\n"
        "    if said.get('die'): sys.exit('out of luck')\n"
        "    print(json.dumps(said), flush=True)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert sys.executable
    return "talker"


def test_a_process_that_hangs_is_ended(talker: str) -> None:
    with Process(talker, "the model", threads=1) as process:
        assert process.ask({"a": 1}) == {"a": 1}
        process.limit_s = 0.01
        with pytest.raises(ArtifactError, match=r"'the model' did not answer within 0\.01 s and was ended\."):
            process.ask({"sleep": True})
        assert process.process.wait() != 0


def test_the_last_words_of_one_that_dies_are_kept(talker: str) -> None:
    with (
        Process(talker, "the model", threads=1) as process,
        pytest.raises(ArtifactError, match=r"ended with code 1\. It said last:\nout of luck"),
    ):
        process.ask({"die": True})
