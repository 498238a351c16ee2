import copy
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lighten.errors import ArtifactError
from lighten.plan import LayerPlan, Plan
from lighten.report import render, write_report
from lighten.report.rows import schemes
from tests.report.html_reader import Page

EVIL = "<script>alert('x')</script>\"&{{ 7*7 }}$\\alpha$</style>"
names = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=60)
# A page with plots takes a third of a second to draw, so a few varied examples and no deadline.
few = settings(max_examples=8, deadline=None)


def named(result: dict[str, Any], plan: Plan, name: str) -> tuple[dict[str, Any], Plan]:
    """The same run with name in every place that may hold free text."""
    result = copy.deepcopy(result)
    result["task"] = result["verdict"] = name
    result["environment"][name] = name
    result["budget"]["minimize"] = name
    for measured in (result["baseline"], result["compressed"], *result["candidates"]):
        measured["metric"]["name"] = name
    for candidate in result["candidates"][:2]:
        candidate.update(name=name, note=name, scheme=name)
    layers = {**plan.layers, name: LayerPlan(scheme=name)}
    return result, replace(plan, layers=layers, skipped={f"not {name}": name}, importance=name, runtime=name)


def test_the_page_is_well_formed_and_carries_the_verdict_first(result: dict[str, Any], plan: Plan) -> None:
    page = Page(render(result, plan))
    assert page.errors == []
    headings = [tag for tag, _ in page.elements if re.fullmatch(r"h\d", tag)]
    assert headings[0] == "h1"
    assert headings.count("h1") == 1
    assert page.text.index(result["verdict"]) < page.text.index("Before and after")
    assert len(page.tags("table")) == len(page.tags("caption")) == 3
    assert all("scope" in th for th in page.tags("th"))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    pictures = [svg for svg in page.tags("svg") if svg.get("role") == "img"]
    assert len(pictures) == 4  # two costs, wide and narrow
    assert all("accuracy drop against" in str(svg["aria-label"]) for svg in pictures)


def test_every_figure_of_the_comparison_is_there(result: dict[str, Any], plan: Plan) -> None:
    text = Page(render(result, plan)).text
    for shown in (
        "0.9833", "0.9811", "n = 899", "drop 0.0022", "−0.0041 to 0.0086", "0.187 ms", "0.0603 ms", "3.1× faster",
        "3.0× to 3.3×", "171 kB", "17.5 kB", "9.8× smaller", "41.9 k", "4.87 M", "onnxruntime, 2 threads, batch 1",
    ):  # fmt: skip
        assert shown in text, shown


def test_every_candidate_layer_and_reason_is_named(result: dict[str, Any], plan: Plan) -> None:
    plan = replace(plan, skipped={**plan.skipped, "encoder.mystery": "aten.fft is not understood"})
    text = Page(render(result, plan)).text
    for candidate in result["candidates"]:
        assert candidate["name"] in text
        assert candidate["note"] in text
    for name in (*plan.layers, *plan.skipped):
        assert name in text
    for reason in plan.skipped.values():
        assert reason in text
    for value in result["environment"].values():
        assert str(value) in text


@few
@given(name=names | st.just(EVIL))
def test_no_name_becomes_markup(result: dict[str, Any], plan: Plan, name: str) -> None:
    expected = Page(render(*named(result, plan, "plain name")))
    page = Page(render(*named(result, plan, name)))
    assert page.errors == []
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in expected.elements]
    assert name in page.text


@few
@given(seed=st.integers(0, 3))
def test_same_input_same_page(result: dict[str, Any], plan: Plan, seed: int) -> None:
    result = {**result, "seed": seed}
    assert render(result, plan) == render(copy.deepcopy(result), plan)


def test_nothing_on_the_page_leaves_it(result: dict[str, Any], plan: Plan) -> None:
    html = render(*named(result, plan, "http://example.invalid/x.js"))
    page = Page(html)
    assert not {"script", "link", "iframe", "img", "object", "form"} & {tag for tag, _ in page.elements}
    for tag, attributes in page.elements:
        for key, value in attributes.items():
            assert key not in ("src", "srcset", "action"), (tag, key)
            assert not key.startswith("on"), (tag, key)
            if key.endswith("href"):
                assert str(value).startswith("#"), (tag, value)
            if not key.startswith(("xmlns", "aria-")):
                assert "//" not in str(value), (tag, key, value)
    assert not re.search(r"@import|url\((?!#)", html)
    assert any("default-src 'none'" in str(meta.get("content")) for meta in page.tags("meta"))


@pytest.mark.parametrize(
    "found", [{}, {"candidates": None, "baseline": None, "environment": "?"}], ids=["empty", "odd"]
)
def test_a_run_without_figures_still_gives_a_page(found: dict[str, Any]) -> None:
    page = Page(render(found, Plan()))
    assert page.errors == []
    assert "not accepted" in page.text
    assert "No version was tried." in page.text
    assert "The plan names no layer" in page.text


@few
@given(path=st.sampled_from(["baseline", "compressed", "drop", "speedup", "trials", "budget", "size_ratio", "wall_s"]),
       value=st.sampled_from([None, float("nan"), float("inf"), 0, -1.0, "text", [], {"metric": 3}]))  # fmt: skip
def test_odd_values_do_not_break_the_page(result: dict[str, Any], plan: Plan, path: str, value: Any) -> None:
    assert Page(render({**result, path: value, "unknown key": value}, plan)).errors == []


def test_an_interval_past_the_budget_is_said(result: dict[str, Any], plan: Plan) -> None:
    assert "cannot be ruled out" not in render(result, plan)
    unsure = {**result, "drop": {"value": 0.0022, "ci95": [-0.0041, 0.0125]}}
    assert "With 899 holdout samples, a drop as large as 0.0125 cannot be ruled out" in render(unsure, plan)
    over = {**result, "drop": {"value": 0.0112, "ci95": [0.0041, 0.0185]}}  # no doubt about that one
    assert "cannot be ruled out" not in render(over, plan)


def test_a_refused_run_says_so(result: dict[str, Any], plan: Plan) -> None:
    page = Page(
        render({**result, "accepted": False, "verdict": "Nothing within 0.01 was faster.", "speedup": 0.8}, plan)
    )
    assert "✗ not accepted" in page.text
    assert "1.25× slower" in page.text


def test_write_replaces_the_page_and_leaves_nothing_else(result: dict[str, Any], plan: Plan, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    write_report({**result, "task": "lone \ud800"}, plan, path)  # a surrogate must not stop the page
    assert Page(path.read_text(encoding="utf-8")).errors == []
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written_is_named(result: dict[str, Any], plan: Plan, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"Cannot write the report .*missing"):
        write_report(result, plan, tmp_path / "missing" / "report.html")


def test_candidates_with_zeros_have_a_sign_of_their_own() -> None:
    result = {"candidates": [{"scheme": None}, {"scheme": None, "sparsity": 0.9}, {"scheme": "w8a8", "sparsity": 0.0}]}
    assert schemes(result) == ["float", "float with zeros", "w8a8"]
