"""The fewest bits of a network's layers that a budget allows."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import lighten
from lighten.metric import Scores
from lighten.plan import Plan
from lighten.quantize.assignment import parse_assignment
from lighten.quantize.mixed import Option
from lighten.runtime.artifact import read_artifact
from lighten.search.bits import N_STEPS, fewest_bits, mean_bits
from lighten.search.config import SearchConfig
from lighten.search.realize import Variant, realize
from lighten.task import Task, evaluate
from tests.tiny import tiny_task

TABLE = {
    layer: tuple(Option(f"w{bits}", bits * size, 4.0**-bits * harm) for bits in (2, 4, 8))
    for layer, size, harm in (("a", 100, 1.0), ("b", 1000, 1.0), ("c", 1000, 50.0))
}


def size_of(assignment: dict[str, str]) -> int:
    return sum(o.size_bytes for name, options in TABLE.items() for o in options if o.scheme == assignment[name])


@given(st.integers(4000, 17000))
def test_the_fewest_bytes_within_the_budget(limit: int) -> None:
    tried: list[int] = []

    def is_within(assignment: dict[str, str]) -> bool:
        tried.append(size_of(assignment))
        return tried[-1] >= limit

    found = fewest_bits(TABLE, is_within)
    assert len(tried) <= 4
    if found is None:
        assert max(tried) < limit
    else:
        assert size_of(found) == min(size for size in tried if size >= limit)
        # What is fewer by a step and more was tried, or is below the fewest there are.
        step = (16800 / 4200) ** (1 / N_STEPS)
        assert any(size < limit for size in tried) or size_of(found) <= 4200 * step


def test_bits_go_where_they_do_least_harm() -> None:
    found = fewest_bits(TABLE, lambda assignment: size_of(assignment) >= 12000)
    assert found is not None
    assert int(found["b"][1:]) < int(found["c"][1:])
    assert mean_bits(TABLE, {"a": "w8", "b": "w8", "c": "w8"}) == 8
    assert mean_bits(TABLE, {"a": "w2", "b": "w2", "c": "w2"}) == 2


def realized(task: Task, baseline: Scores, tmp_path: Path, runtime: str, narrow_to: float | None) -> list[float]:
    zeros = {"conv2": 0.7} if runtime == "native" else {}
    variant = Variant(name="it", zeros=zeros, schemes=("w8",), runtimes=(runtime,), epochs=2, narrow_to=narrow_to)
    found = realize(task, baseline, variant, SearchConfig(), tmp_path / str(narrow_to), lambda share, doing: None)
    for candidate in found:
        assert candidate.plan is not None
        assert candidate.plan.scheme == candidate.scheme
    return [candidate.size_bytes for candidate in found]


@pytest.mark.parametrize("runtime", ["native", "onnxruntime"])
def test_a_variant_has_a_candidate_of_fewer_bits_where_the_drop_allows_it(tmp_path: Path, runtime: str) -> None:
    task = tiny_task()
    baseline = evaluate(task.model, task.selection, task.metric, 100)
    (plain,) = realized(task, baseline, tmp_path, runtime, None)
    wide, narrow = realized(task, baseline, tmp_path, runtime, 1.0)
    assert wide == plain
    assert narrow < plain
    assert realized(task, baseline, tmp_path, runtime, -1.0) == [plain]  # not even the network as it is is within that


def test_compress_by_size_takes_fewer_bits_and_its_plan_gives_them_again(tmp_path: Path) -> None:
    how = {"max_drop": 0.1, "minimize": "size", "threads": 1}
    config = SearchConfig(epochs=2, long_factor=1, max_trials=2)
    result = lighten.compress(tiny_task(), out_dir=tmp_path / "out", config=config, **how)
    assert result.plan.scheme is not None
    widths = {scheme.weight_bits for scheme in parse_assignment(result.plan.scheme).schemes}
    assert min(widths) < 8
    assert " bits" in result.verdict
    again = lighten.compress(tiny_task(), out_dir=tmp_path / "again", plan=result.plan, config=config, **how)
    assert replace(again.plan, seed=0) == replace(Plan.load(tmp_path / "out" / "plan.yaml"), seed=0)
    sizes = [read_artifact(tmp_path / name / "artifact").size_bytes for name in ("out", "again")]
    assert sizes[0] == sizes[1]
