"""Drop against cost, as an SVG string that belongs inside an HTML page.

No name that a user chose is drawn by matplotlib: a `$` would start a formula, and the page's fonts are not
matplotlib's. Such names go through markupsafe into the finished SVG or into the legend beside it. Colours are drawn
as stand-ins and become CSS variables, so one picture serves light and dark pages.
"""

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

LEAST = 1e-9  # of a drop that an axis shows: nothing below it can be told from 0
MARKS = ("o", "s", "^", "P", "v", "X")  # one for each number format, in order of appearance; they repeat after six
STAND_INS = {  # drawn colour -> what the page makes of it; greys that no figure would use by chance
    "#010203": "var(--ink)",
    "#010204": "var(--muted)",
    "#010205": "var(--line)",
    "#010206": "var(--bad)",
    "#010207": "var(--paper)",
    "#010208": "var(--accent)",
    **{f"#01030{i}": f"var(--c{i})" for i in range(len(MARKS))},
}
INK, MUTED, LINE, BAD, PAPER, ACCENT, *SERIES = STAND_INS
NAME = "METRIC-NAME"  # stands for the metric's name until the SVG is finished
WIDE, NARROW = (10.0, 4.7, 9.5), (4.3, 4.1, 11.0)  # inches, inches, font size in points; one point becomes 1–1.3 px


@dataclass(frozen=True)
class Point:
    """One version of the model. cost: ms or bytes. drop with its 95 % interval [low, high]; positive = worse.

    series: which number format, as an index into the legend. role: "trial", "chosen", "holdout" or "baseline".
    """

    cost: float
    drop: float
    low: float
    high: float
    series: int = 0
    role: str = "trial"


@dataclass(frozen=True)
class Axis:
    """What cost means: a label, and the units it may be shown in as (factor, name), smallest first."""

    label: str
    units: tuple[tuple[float, str], ...]


LATENCY = Axis("latency, median of one call", ((1.0, "ms"),))
SIZE = Axis("size on disk", ((1.0, "B"), (1e3, "kB"), (1e6, "MB"), (1e9, "GB")))


def scatter(points: Sequence[Point], axis: Axis, *, metric: str, budget: float | None, narrow: bool) -> Markup:
    """Every version by its cost and its drop; up and left is better. Same points, same bytes."""
    width, height, font = NARROW if narrow else WIDE
    figure = Figure(figsize=(width, height))
    left, bottom, top = 5.2 * font / 72, 3.9 * font / 72, 2.6 * font / 72  # inches
    axes = figure.add_axes((left / width, bottom / height, 0.975 - left / width, 1 - (bottom + top) / height))
    factor, unit = _unit(axis, points)
    _frame(axes, font)
    _cost_scale(axes, [p.cost / factor for p in points])
    _drop_scale(axes, points, budget)
    _budget_line(axes, budget, font)
    for point in points:
        _mark(axes, point, factor)
    axes.set_xlabel(f"{axis.label} ({unit})", color=INK, fontsize=font, labelpad=0.5 * font)
    axes.text(-left / (width * axes.get_position().width), 1 + 1.2 * font / 72 / height, f"{NAME} drop  ↓ worse",
              transform=axes.transAxes, color=INK, fontsize=font)  # fmt: skip
    return _svg(figure, salt=f"{axis.label} {narrow}", label=_description(points, axis, metric), metric=metric)


def mark(series: int | None = None, role: str = "trial") -> Markup:
    """The sign of one series or role, alone, for a legend. It holds no id, so a page may show it many times."""
    figure = Figure(figsize=(0.24, 0.24))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set(xlim=(-1, 1), ylim=(-1, 1))
    _mark(axes, Point(0, 0, 0, 0, series or 0, role), 1.0, bare=series is None)
    for artist in axes.get_children():
        artist.set_clip_on(False)
    svg = str(_svg(figure, salt="legend", label="", metric=""))
    shapes = dict(re.findall(r'<path id="(\w+)" (d=".*?")', svg, flags=re.S))
    svg = re.sub(r"<defs>.*?</defs>", "", svg, flags=re.S)
    use = r'<use xlink:href="#(\w+)" x="([\d.]+)" y="([\d.]+)"'  # its style goes on after these
    return Markup(re.sub(use, lambda m: f'<path transform="translate({m[2]} {m[3]})" {shapes[m[1]]}', svg))


def _unit(axis: Axis, points: Sequence[Point]) -> tuple[float, str]:
    largest = max((p.cost for p in points), default=0.0)
    return max((u for u in axis.units if u[0] <= largest), default=axis.units[0])


def _frame(axes: Axes, font: float) -> None:
    axes.set_facecolor("none")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(LINE)
    axes.tick_params(colors=LINE, labelcolor=MUTED, labelsize=font)
    axes.grid(color=LINE, linewidth=0.5, alpha=0.6)
    axes.set_axisbelow(True)


def _cost_scale(axes: Axes, costs: list[float]) -> None:
    """From zero, so that lengths compare; logarithmic where the cheapest would be squeezed against the axis."""
    positive = [c for c in costs if c > 0] or [1.0]
    if max(positive) / min(positive) > 12:
        axes.set_xscale("log")
        axes.set_xlim(min(positive) / 1.6, max(positive) * 1.6)
        dense = max(positive) / min(positive) < 300
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if dense else (1.0,)))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.set_xlim(0, max(positive) * 1.12)
        axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))


def _drop_scale(axes: Axes, points: Sequence[Point], budget: float | None) -> None:
    """Down is worse. Linear up to a knee past the budget, then logarithmic if ruined trials would hide the rest."""
    worst = max([p.high for p in points] + [(budget or 0) * 1.5, LEAST])
    best = min([p.low for p in points] + [-(budget or 0) * 0.5])
    pad = 0.06 * (worst - best)
    knee = _round_up(max(2 * (budget or worst), -best, LEAST))
    if worst > 5 * knee:
        axes.set_yscale("symlog", linthresh=knee, linscale=1.2)
        axes.yaxis.set_major_locator(FixedLocator(_knee_ticks(knee, worst)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_ylim(worst * 1.3, best - 0.1 * knee)
    else:
        axes.yaxis.set_major_locator(MaxNLocator(6))
        axes.set_ylim(worst + pad, best - pad)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:.3g}".replace("-", "−")))
    axes.axhline(0, color=MUTED, linewidth=0.8)


def _round_up(x: float) -> float:
    """To the next 1, 2 or 5 times a power of ten."""
    decade = 10.0 ** math.floor(math.log10(x))
    return next((s * decade for s in (1, 2, 5) if s * decade >= x * (1 - 1e-9)), 10 * decade)


def _knee_ticks(knee: float, worst: float) -> list[float]:
    """Steps of half a knee where the scale is linear, then 1, 2, 5 (or 1 alone) a decade."""
    steps = (1, 2, 5) if worst < 100 * knee else (1,)
    decades = range(math.floor(math.log10(knee)), math.ceil(math.log10(worst)) + 1)
    return [k * knee / 2 for k in range(-2, 3)] + [
        s * 10.0**d for d in decades for s in steps if s * 10.0**d > 1.2 * knee
    ]


def _budget_line(axes: Axes, budget: float | None, font: float) -> None:
    if budget is None:
        return
    axes.axhspan(budget, axes.get_ylim()[0], color=BAD, alpha=0.06, linewidth=0)
    axes.axhline(budget, color=BAD, linewidth=1.1, linestyle=(0, (5, 3)))
    axes.annotate(f"budget {budget:g}", (1, budget), xycoords=axes.get_yaxis_transform(), xytext=(-3, -0.4 * font),
                  textcoords="offset points", ha="right", va="top", color=BAD, fontsize=font)  # fmt: skip


def _mark(axes: Axes, point: Point, factor: float, *, bare: bool = False) -> None:
    """bare: only what the role adds, as a legend shows it."""
    x, y, series = point.cost / factor, point.drop, point.series % len(MARKS)
    if point.role == "chosen":
        axes.plot([x], [y], "o", markersize=14.5, markerfacecolor="none", markeredgecolor=ACCENT, markeredgewidth=2)
    if point.role == "baseline":
        axes.plot([x], [y], "D", markersize=8.5, color=INK, zorder=4)
    elif not (bare and point.role == "chosen"):
        shipped = point.role == "holdout"
        color = ACCENT if shipped else SERIES[series]
        reach = [[max(0.0, y - point.low)], [max(0.0, point.high - y)]]
        bars = axes.errorbar([x], [y], yerr=reach, fmt="*" if shipped else MARKS[series], color=color,
                             markersize=16 if shipped else 8, markeredgecolor=PAPER, markeredgewidth=0.8,
                             elinewidth=1.8 if shipped else 1.1, zorder=5 if shipped else 3)  # fmt: skip
        for line in bars.lines[2]:
            line.set_alpha(0.55)


def _description(points: Sequence[Point], axis: Axis, metric: str) -> str:
    n_trials = sum(p.role in ("trial", "chosen") for p in points)
    return (
        f"Scatter plot of the {metric} drop against {axis.label}, {n_trials} trials; the table below has every value."
    )


def _svg(figure: Figure, *, salt: str, label: str, metric: str) -> Markup:
    buffer = io.StringIO()
    # rc_context, because these two can be set nowhere else: text stays text, and ids depend on content alone.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))  # no clock, no version, no address
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<defs>\s*<style.*?</defs>", "", text, count=1, flags=re.S)  # it would style the whole page
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # these repeat from figure to figure and nothing refers to them
    text = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", text)  # as matplotlib < 3.10 writes it
    text = re.sub(r"font-family: [^;\"]*;?", "", text)  # the page's font
    for drawn, css in STAND_INS.items():
        text = text.replace(drawn, css)
    about = Markup('role="img" aria-label="{}"').format(label) if label else 'aria-hidden="true"'
    text = re.sub(
        r'<svg (.*?)width="[^"]*" height="[^"]*"', lambda m: f"<svg {about} {m[1]}", text, count=1, flags=re.S
    )
    short = metric if len(metric) <= 28 else f"{metric[:27]}…"
    return Markup(text.replace(NAME, str(escape(short))))
