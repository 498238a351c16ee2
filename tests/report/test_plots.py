import re
from dataclasses import replace

import matplotlib as mpl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lighten.report.plots import LATENCY, SIZE, STAND_INS, Point, mark, scatter

BASE = Point(0.2, 0.0, 0.0, 0.0, role="baseline")
TRIAL = Point(0.1, 0.004, -0.002, 0.012)


def draw(*points: Point, budget: float | None = 0.01, metric: str = "accuracy", narrow: bool = False) -> str:
    return scatter(points, LATENCY, metric=metric, budget=budget, narrow=narrow)


def texts(svg: str) -> list[str]:
    return re.findall(r"<text[^>]*>(.*?)</text>", svg)


def test_axes_are_named_with_their_units() -> None:
    shown = texts(draw(BASE, TRIAL))
    assert "latency, median of one call (ms)" in shown
    assert "accuracy drop  ↓ worse" in shown
    assert "budget 0.01" in shown
    sizes = scatter([Point(171_204, 0, 0, 0)], SIZE, metric="accuracy", budget=None, narrow=False)
    assert "size on disk (kB)" in texts(sizes)


def test_the_cost_axis_starts_at_zero_until_that_would_squeeze() -> None:
    assert "0" in texts(draw(BASE, TRIAL))[:2]
    assert "0" not in texts(draw(BASE, replace(TRIAL, cost=0.001)))[:2]


def test_one_ruined_trial_does_not_hide_the_budget() -> None:
    ruined = replace(TRIAL, drop=0.9, low=0.8, high=0.95)
    shown = texts(draw(BASE, TRIAL, ruined))
    assert {"0", "0.01", "0.02", "0.1"} <= set(shown)  # the budget's own scale is still resolved


@pytest.mark.parametrize("points", [[replace(TRIAL, role="chosen")], [replace(TRIAL, series=1)], []])
def test_each_role_series_and_absence_is_visible(points: list[Point]) -> None:
    assert draw(BASE, *points) != draw(BASE, TRIAL)


def test_colours_belong_to_the_page_and_the_picture_leaves_no_trace() -> None:
    svg = draw(BASE, TRIAL, replace(TRIAL, role="holdout"))
    assert "var(--ink)" in svg
    assert not any(drawn in svg for drawn in STAND_INS)
    assert not re.search(r"#[0-9a-f]{6}\b(?!\d)", re.sub(r'"#?\w+"|url\(#\w+\)', "", svg))
    assert "<style" not in svg
    assert "font-family" not in svg
    assert "<metadata" not in svg


def test_the_metric_name_is_text_never_a_formula_or_markup() -> None:
    svg = draw(BASE, metric="<b>$x$")
    assert "&lt;b&gt;$x$ drop  ↓ worse" in svg
    assert draw(BASE, metric="m" * 100).count("m" * 27 + "…") == 1


def test_a_legend_sign_may_be_shown_many_times() -> None:
    for sign in (mark(0), mark(5), mark(role="chosen"), mark(role="holdout"), mark(role="baseline")):
        assert ' id="' not in sign
        assert "<path" in sign
    assert "var(--c5)" in mark(5)
    assert "var(--accent)" in mark(role="chosen")


def test_wide_intervals_do_not_bend_the_scale_at_a_tiny_budget() -> None:
    unsure = replace(TRIAL, low=-0.008, high=0.009)
    ruined = replace(TRIAL, drop=0.5, low=0.4, high=0.6)
    assert {"−0.005", "0", "0.005", "0.01", "0.1"} <= set(texts(draw(BASE, unsure, ruined, budget=0.001)))


def test_drawing_leaves_the_settings_of_matplotlib_alone() -> None:
    before = dict(mpl.rcParams)
    draw(BASE)
    assert dict(mpl.rcParams) == before


values = st.floats(-1e6, 1e6, allow_nan=False)


@settings(max_examples=20, deadline=None)
@example(points=[], budget=5e-324)
@given(
    points=st.lists(st.builds(Point, st.floats(1e-6, 1e9), values, values, values, st.integers(0, 9)), max_size=4),
    budget=st.none() | st.floats(0, 10),
)
def test_any_figures_can_be_drawn_and_twice_the_same(points: list[Point], budget: float | None) -> None:
    assert draw(*points, budget=budget) == draw(*points, budget=budget)
