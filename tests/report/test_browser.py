"""The page as a reader meets it: in a real browser, on a phone and on a desk, light and dark."""

import shutil
import subprocess
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from lighten.plan import LayerPlan, Plan
from lighten.report import render
from tests.report.html_reader import Page

BINARY = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(BINARY is None, reason="no chromium, chromium-browser or google-chrome on PATH"),
]
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
DARK = "--blink-settings=preferredColorScheme=0"
# Runs only in the test's copy, whose content policy lets it: what the layout came to, written where --dump-dom sees it.
PROBE = """<script>
addEventListener("load", () => {
  const root = document.documentElement, shown = [...document.querySelectorAll(".plot svg")].filter(s => s.clientWidth);
  const cut = [...document.querySelectorAll("main *")].filter(e => !e.closest(".scroll, svg, .bar"))
    .filter(e => e.getBoundingClientRect().right > innerWidth + 1);
  parent.document.documentElement.dataset.layout =
    [innerWidth, root.scrollWidth, shown.length, Math.min(...shown.map(s => s.clientWidth)), cut.length].join();
  parent.document.documentElement.dataset.text = document.body.innerText;
});
</script></body>"""
# A frame, because a headless window is laid out at 500 px at least.
FRAME = '<!doctype html><iframe style="border: 0" width="{}" height="1600" srcdoc="{}"></iframe>'


def browse(page: Path, width: int, *flags: str) -> str:
    profile = f"--user-data-dir={page.parent / 'profile'}"
    command = [str(BINARY), *FLAGS, profile, f"--window-size={width},1600", *flags, page.as_uri()]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


@pytest.fixture
def crowded(result: dict[str, Any], plan: Plan) -> tuple[dict[str, Any], Plan]:
    """The same run with names that would burst a page which did not hold them."""
    long = "encoder.blocks." + "very_long_name." * 12
    layers = {**plan.layers, long: LayerPlan(channels=4096, kept=1, scheme="w4a8")}
    environment = {**result["environment"], "flags": "x" * 400}
    return {**result, "task": long, "environment": environment}, replace(plan, layers=layers, skipped={long: long * 3})


@pytest.mark.parametrize("width", [375, 1280])
def test_the_page_fits_its_window_and_shows_its_figures(
    crowded: tuple[dict[str, Any], Plan], width: int, tmp_path: Path
) -> None:
    html = render(*crowded).replace("style-src", "script-src 'unsafe-inline'; style-src").replace("</body>", PROBE)
    page = tmp_path / "frame.html"
    page.write_text(FRAME.format(width, escape(html)), encoding="utf-8")
    seen = Page(browse(page, 1400, "--dump-dom")).tags("html")[0]
    window, content, n_plots, plot_width, n_cut = map(int, str(seen["data-layout"]).split(","))
    assert window == width
    assert content <= window
    assert n_cut == 0
    assert n_plots == 2  # of the four drawn, the two that fit this width
    assert plot_width > 0.75 * min(width, 1000)
    for figure in ("3.1× faster", "9.8× smaller", "−0.0041 to 0.0086", "0.0603 ms"):
        assert figure in str(seen["data-text"])


@pytest.mark.parametrize("width", [375, 1280])
def test_the_page_is_drawn_in_light_and_in_dark(result: dict[str, Any], plan: Plan, width: int, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text(render(result, plan), encoding="utf-8")
    light, dark = (screenshot(page, width, *flags) for flags in ((), (DARK,)))
    assert light.shape == dark.shape == (1600, width, 3)
    for image in (light, dark):
        assert len(np.unique(image[::8].reshape(-1, 3), axis=0)) > 100  # text, lines and colours, not an empty sheet
    assert np.median(light) > 0.9
    assert np.median(dark) < 0.2


def screenshot(page: Path, width: int, *flags: str) -> np.ndarray[Any, Any]:
    """[height, width, 3] in 0..1."""
    image = page.with_suffix(".png")
    browse(page, width, *flags, f"--screenshot={image}")
    return np.asarray(imread(image))[..., :3]
