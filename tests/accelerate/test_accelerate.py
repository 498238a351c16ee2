from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import lighten
from lighten.accelerate import drafts, lossless_baseline, verb
from lighten.accelerate.drafts import Draft, write_drafts
from lighten.accelerate.verb import telling
from lighten.cli.accelerate import blocks
from lighten.errors import ArtifactError, ConfigError
from lighten.export import export
from lighten.graph.capture import capture
from lighten.quantize import quantize
from lighten.runtime import contest as contest_module
from lighten.runtime import final as final_module
from lighten.runtime.contest import Candidate, Trial
from lighten.runtime.final import FinalConfig
from lighten.runtime.measure import LatencySample
from lighten.runtime.pool import Pool
from lighten.runtime.throughput import Throughput
from tests.export.models import Logits, Outlandish
from tests.tiny import TinyNet

X = torch.zeros(2, 1, 8, 8)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without torch.compile, which takes ten seconds, pauses, and further rounds."""
    every = drafts.ways
    monkeypatch.setattr(drafts, "ways", lambda captured: [way for way in every(captured) if not way.is_compiled])
    monkeypatch.setattr(contest_module, "FinalConfig", partial(FinalConfig, most_rounds=2, pause_s=0.0))


def sample(median_ms: float) -> LatencySample:
    return LatencySample(blocks_ms=((np.full(3, median_ms),) * 4,) * 5)


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """No process is started: times says what a candidate takes, in ms, refused which are refused, and
    unsteady what some take after the first look."""
    stand_in = SimpleNamespace(times={}, refused={}, looked=[], crews={}, unsteady={})

    def look(candidates: Sequence[Candidate], *_: Any, **__: Any) -> list[Trial]:
        stand_in.looked += [candidate.name for candidate in candidates]
        return [
            Trial(candidate=c, refused=stand_in.refused[c.name])
            if c.name in stand_in.refused
            else Trial(candidate=c, difference=1e-7, sample=sample(stand_in.times.get(c.name, 9.0)))
            for c in candidates
        ]

    def measure(artifacts: Mapping[str, Path], *_: Any, **__: Any) -> dict[str, LatencySample]:
        return {name: sample(stand_in.unsteady.get(name, stand_in.times.get(name, 9.0))) for name in artifacts}

    def compare(crews: Mapping[str, Any], *_: Any) -> dict[str, LatencySample]:
        stand_in.crews = {name: (crew.workers, crew.threads) for name, crew in crews.items()}
        return {name: sample(stand_in.times.get(name, 9.0) / crew.workers) for name, crew in crews.items()}

    monkeypatch.setattr(verb, "look", look)
    monkeypatch.setattr(final_module, "measure_latency", measure)
    monkeypatch.setattr(contest_module, "FinalConfig", partial(FinalConfig, pause_s=0.0))
    monkeypatch.setattr(verb, "compare_crews", compare)
    monkeypatch.setattr(
        verb, "measure_throughput", lambda *_, **__: [Throughput(1, 50.0, 1.0), Throughput(4, 160.0, 0.8)]
    )
    for module in (verb, drafts):
        monkeypatch.setattr(module, "usable_cores", lambda: 4)
    return stand_in


@pytest.fixture(scope="module")
def tiny_drafts(tmp_path_factory: pytest.TempPathFactory) -> list[Draft]:
    """TinyNet for every runtime, lowered once."""
    return write_drafts(capture(TinyNet(), (X,)), (X,), None, tmp_path_factory.mktemp("drafts"))


@pytest.fixture
def lowered(tiny_drafts: list[Draft], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verb, "write_drafts", lambda *_: tiny_drafts)


def test_the_artifact_computes_what_the_model_computes(tmp_path: Path, quick: None) -> None:
    model = TinyNet()
    model.norm.running_mean += 0.3
    told: list[str] = []
    artifact = lighten.accelerate(model, (X,), tmp_path / "out", threads=1, on_progress=told.append)
    x = torch.randn(5, 1, 8, 8)
    # Two convolutions and a sum of 512 products: float32 roundings of 6e-8, in another order.
    torch.testing.assert_close(lighten.load(tmp_path / "out")(x), model.eval()(x).detach(), rtol=1e-4, atol=1e-5)
    assert artifact.options["threads"] == 1
    notes = artifact.notes["accelerate"]
    assert (notes["mode"], notes["batch"], notes["tolerance"]) == ("latency", 2, 1e-3)
    assert [trial["way"] for trial in notes["trials"]][-2:] == ["torch", "torch channels-last"]
    assert all(trial["difference"] < 1e-5 for trial in notes["trials"] if not trial["refused"])
    assert notes["winner"] in [trial["name"] for trial in notes["trials"]]
    assert notes["latency_ms"]["median"] > 0
    assert notes["speedup"]["over"] == "onnxruntime, 1 thread"
    assert told[0] == "tracing the model"
    assert "a first look at onnxruntime, 1 thread" in told
    assert told[-1] == "timing the fastest side by side, round 2"


def test_a_quantized_module_stays_as_it_is(tmp_path: Path, quick: None) -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 4)
    quantized = quantize(Logits(), "w8a8", calibration=[x], weight_bits=7)
    artifact = lossless_baseline(quantized, (x,), tmp_path / "out", threads=1)
    assert artifact.plan == quantized.plan
    notes = artifact.notes["accelerate"]
    assert notes["tolerance"] == 5e-2
    assert "is not an ATen operator" in next(t["refused"] for t in notes["trials"] if t["way"] == "torch")
    assert artifact.runtime in ("onnxruntime", "openvino")


def test_compiling_is_tried_once_the_way_that_suits_eager(tmp_path: Path, timed: Any, lowered: None) -> None:
    compiled = "torch compiled channels-last, 2 threads"
    timed.times = {"torch channels-last, 2 threads": 1.5, compiled: 0.5, "onnxruntime, 4 threads": 2.0}
    artifact = lighten.accelerate(TinyNet(), (X,), tmp_path / "out")
    assert [name for name in timed.looked if "compiled" in name] == [compiled]
    assert [name for name in timed.looked if name.startswith("openvino")] == [
        *("openvino, 1 thread", "openvino, 2 threads", "openvino, 3 threads", "openvino, 4 threads")
    ]
    assert (artifact.runtime, artifact.options) == (
        "torch",
        {"mode": "compile", "layout": "channels_last", "threads": 2},
    )
    speedup = artifact.notes["accelerate"]["speedup"]
    assert speedup == {"over": "onnxruntime, 4 threads", "value": 4.0, "ci95": [4.0, 4.0], "is_different": True}


def test_equal_times_go_to_onnxruntime_on_few_threads(tmp_path: Path, timed: Any, lowered: None) -> None:
    artifact = lighten.accelerate(TinyNet(), (X,), tmp_path / "out")
    assert (artifact.runtime, artifact.options) == ("onnxruntime", {"threads": 1})
    artifact = lighten.accelerate(TinyNet(), (X,), tmp_path / "out", threads=3)
    assert artifact.options == {"threads": 3}
    assert {name.rpartition(", ")[2] for name in timed.looked[-4:]} == {"3 threads"}


def test_how_steady_the_machine_was_is_noted(tmp_path: Path, timed: Any, lowered: None) -> None:
    timed.times = {"openvino, 1 thread": 2.0, "openvino, 4 threads": 1.0}
    calm = lighten.accelerate(TinyNet(), (X,), tmp_path / "out").notes["accelerate"]
    assert (calm["steadiness"]["rounds"], calm["steadiness"]["is_steady"]) == (2, True)
    timed.unsteady = {"openvino, 1 thread": 2.5, "openvino, 4 threads": 3.0}
    notes = lighten.accelerate(TinyNet(), (X,), tmp_path / "out").notes["accelerate"]
    assert notes["winner"] == "openvino, 1 thread"
    assert notes["steadiness"] == {
        **{"rounds": 5, "is_steady": False, "moved_most": "openvino, 4 threads", "span_ms": [1.0, 3.0]}
    }
    round_ms = {trial["name"]: trial["round_ms"] for trial in notes["trials"]}
    assert round_ms["openvino, 1 thread"] == [2.0, *[2.5] * 5]
    assert round_ms["torch, 4 threads"] == []


def test_without_plain_onnxruntime_there_is_no_speedup(tmp_path: Path, timed: Any) -> None:
    artifact = lighten.accelerate(Outlandish(), (torch.randn(2, 4),), tmp_path / "out", threads=1)
    notes = artifact.notes["accelerate"]
    assert (artifact.runtime, notes["speedup"]) == ("torch", None)
    assert "airy" in next(trial["refused"] for trial in notes["trials"] if trial["name"] == "onnxruntime")


def test_throughput_weighs_workers_against_threads(tmp_path: Path, timed: Any, lowered: None) -> None:
    # Four workers of one thread do 4 calls in 3 ms, one of four threads does 1 in 1 ms.
    timed.times = {"openvino, 1 thread": 3.0, "openvino, 4 threads": 1.0, "openvino, 3 threads": 1.0}
    artifact = lighten.accelerate(TinyNet(), (X,), tmp_path / "out", mode="throughput")
    assert timed.crews == {
        "onnxruntime, 4 threads": (1, 4),  # plain, for the speed-up
        "openvino, 1 thread": (4, 1),
        "openvino, 3 threads": (1, 3),
        "openvino, 4 threads": (1, 4),
    }
    assert (artifact.runtime, artifact.options) == ("openvino", {"threads": 1, "workers": 4})
    notes = artifact.notes["accelerate"]
    assert notes["samples_per_s"] == pytest.approx(2 * 1e3 / 0.75)
    assert (notes["efficiency"], notes["scaling"][0]["workers"]) == (0.8, 1)
    assert notes["speedup"]["value"] == pytest.approx(12.0)


def test_a_pool_heeds_what_throughput_found(tmp_path: Path, timed: Any, lowered: None) -> None:
    lighten.accelerate(TinyNet(), (X,), tmp_path / "out", mode="throughput", threads=2)
    with Pool(tmp_path / "out") as pool:
        assert pool.workers == 2
        assert pool.runner(X).shape == (2, 4)


def test_nothing_that_agrees_leaves_nothing_behind(tmp_path: Path, timed: Any, lowered: None) -> None:
    ways = ("onnxruntime", "openvino", "native", "torch", "torch channels-last")
    timed.refused = {f"{way}, 1 thread": "off by far" for way in ways}
    with pytest.raises(ArtifactError, match=r"None of 5 candidates.*onnxruntime, 1 thread: off by far"):
        lighten.accelerate(TinyNet(), (X,), tmp_path / "out", threads=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "speed"}, "mode='speed' is unknown"),
        ({"threads": 0}, "threads=0 is not between 1 and 1024"),
        ({"tolerance": 0.0}, "tolerance=0.0 is not above 0"),
        ({"tolerance": float("nan")}, "tolerance=nan is not above 0"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        lighten.accelerate(TinyNet(), (X,), tmp_path / "out", **settings)


def test_a_foreign_folder_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    told: list[str] = []
    with pytest.raises(ArtifactError, match="exists with other content"):
        lighten.accelerate(TinyNet(), (X,), tmp_path, on_progress=told.append)
    assert told == []
    (tmp_path / "thesis.txt").unlink()


def test_zeros_tell_nothing_and_are_replaced() -> None:
    ids, images = torch.zeros(2, 3, dtype=torch.int64), torch.randn(2, 3)
    inputs = (torch.zeros(2, 3), ids, {"images": images, "scale": torch.tensor([1.0])}, 3)
    told = telling(inputs)
    assert told[0].std() > 0.1
    assert torch.equal(told[0], telling(inputs)[0])
    assert told[1] is ids
    assert told[2]["images"] is images
    assert torch.equal(told[2]["scale"], torch.tensor([1.0]))
    assert told[3] == 3


def test_the_tolerance_is_passed_on(tmp_path: Path, timed: Any, lowered: None) -> None:
    artifact = lighten.accelerate(TinyNet(), (X,), tmp_path / "out", tolerance=1e-6, threads=1)
    assert artifact.notes["accelerate"]["tolerance"] == 1e-6


def test_export_auto_is_accelerate(tmp_path: Path, timed: Any, lowered: None) -> None:
    artifact = export(TinyNet(), (X,), tmp_path / "out", runtime="auto", threads=2)
    assert artifact.notes["accelerate"]["winner"] == "onnxruntime, 2 threads"


def retuned(monkeypatch: pytest.MonkeyPatch, best: int) -> None:
    """Retuning that takes no time, and finds blocks of that size for the first of two products with blocks of 4."""
    from lighten.runtime.native import retune

    choices = [retune.Choice(place=i, block=4, best=best if i == 0 else 4, ms={2: 1.0, 4: 1.5}) for i in range(2)]

    def same_files(artifact: Any, batch: int) -> Any:
        return choices, lambda folder: [
            (folder / name).write_bytes((artifact.path / name).read_bytes()) for name in artifact.files
        ]

    monkeypatch.setattr(retune, "retune", same_files)


def test_a_native_engine_that_may_win_is_retuned(
    tmp_path: Path, timed: Any, lowered: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    retuned(monkeypatch, best=2)
    timed.times = {"native, 2 threads": 6.0, "native retuned, 2 threads": 4.0}
    artifact = lighten.accelerate(TinyNet(), (X,), tmp_path / "out")
    notes = artifact.notes["accelerate"]
    assert (artifact.runtime, notes["winner"]) == ("native", "native retuned, 2 threads")
    ways = [trial["way"] for trial in notes["trials"]]
    assert [*dict.fromkeys(ways)][:5] == ["onnxruntime", "openvino", "native", "native retuned", "torch"]
    assert notes["blocks"]["products"] == 2
    assert [choice["place"] for choice in notes["blocks"]["changed"]] == [0]
    assert blocks(notes) == [
        "native retuned: 1 of 2 products are quicker here in blocks of another size, by 0.500 ms in all, each timed "
        "alone."
    ]


@pytest.mark.parametrize(("ms", "best", "said"), [(6.0, 4, "none is quicker here"), (30.0, 2, "")])
def test_without_other_blocks_or_a_chance_nothing_is_retuned(
    tmp_path: Path, timed: Any, lowered: None, monkeypatch: pytest.MonkeyPatch, ms: float, best: int, said: str
) -> None:
    retuned(monkeypatch, best)
    timed.times = {f"native, {n} thread{'s' * (n > 1)}": ms for n in (1, 2, 3, 4)}
    notes = lighten.accelerate(TinyNet(), (X,), tmp_path / "out").notes["accelerate"]
    assert not [name for name in timed.looked if "retuned" in name]
    assert said in "".join(blocks(notes))
    assert bool(notes["blocks"]["products"]) == bool(said)
