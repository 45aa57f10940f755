"""Line charts as inline SVG: pure functions from points to text. Colours are classes; the page's style sheet sets them
for light and dark. A chart is drawn for a phone's width, so that its letters stay readable there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from megatron_qwen3vl.report.files import Series

WIDTH, HEIGHT = 420, 250
LEFT, RIGHT, TOP, BOTTOM = 48, 8, 24, 26
POINTS = 300  # of a curve over the whole run


@dataclass(frozen=True)
class Point:
    """``y`` is the mean of the values that fell together, ``low`` and ``high`` the least and the greatest of them."""

    x: float
    y: float
    low: float
    high: float


@dataclass(frozen=True)
class Line:
    """One curve: a segment per stage. ``dots`` marks single measurements."""

    name: str
    segments: Sequence[Sequence[Point]]
    colour: int  # 1 to 3
    dots: bool = False


@dataclass(frozen=True)
class Chart:
    """``stages``: (updates before it, name), in order; ``last`` is the run's number of updates."""

    title: str
    lines: Sequence[Line]
    stages: Sequence[tuple[int, str]]
    last: int
    from_zero: bool = False
    logarithmic: bool = False


def thin(series: Series, last: int, points: int = POINTS) -> list[Point]:
    """At most about ``points`` points over 1..``last`` updates: neighbours fall together, nan falls away."""
    width = max(1.0, last / points)
    found: list[Point] = []
    bucket: list[tuple[float, float]] = []

    def close() -> None:
        if bucket:
            ys = [y for _, y in bucket]
            x = sum(x for x, _ in bucket) / len(bucket)
            found.append(Point(x, math.fsum(y / len(ys) for y in ys), min(ys), max(ys)))
            bucket.clear()

    index = -1
    for x, y in zip(series.x, series.y, strict=True):
        if int((x - 1) // width) != index:
            close()
            index = int((x - 1) // width)
        if math.isfinite(y):
            bucket.append((x, y))
    close()
    return found


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers (1, 2, 5 times a power of ten) inside the range."""
    raw = (high - low) / about
    if not math.isfinite(raw) or raw <= 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]


def short(value: float) -> str:
    """A number for an axis or a table: 1,234 · 1.23M · 0.0123 · 1.2e-05; a dash where there is none."""
    if not math.isfinite(value):
        return "–"
    size = abs(value)
    for limit, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if size >= limit:
            return f"{value / limit:.4g}{letter}"
    if size >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}"


def labels(places: Sequence[float]) -> list[str]:
    """The numbers beside an axis, with as many decimals as it takes to tell evenly spaced places apart."""
    largest = max(abs(place) for place in places)
    even = len(places) > 1 and math.isclose(places[1] - places[0], places[-1] - places[-2], rel_tol=1e-6)
    if not even or not 1e-3 <= largest < 1e4:
        return [short(place) for place in places]
    step = places[1] - places[0]
    decimals = next(d for d in range(12) if math.isclose(round(step, d), step, rel_tol=1e-6) or d == 11)
    return [f"{place:,.{decimals}f}" for place in places]


class _Axes:
    """Values -> places in the picture."""

    def __init__(self, chart: Chart) -> None:
        points = [p for line in chart.lines for segment in line.segments for p in segment]
        low, high = min(p.y for p in points), max(p.y for p in points)
        if chart.logarithmic:  # spikes are what one looks for here
            low, high = min(p.low for p in points), max(p.high for p in points)
        self.logarithmic = chart.logarithmic and low > 0 and high > 10 * low
        if self.logarithmic:
            low, high = math.log10(low), math.log10(high)
        elif chart.from_zero:
            low = min(low, 0.0)
        margin = (high - low) * 0.05 or max(abs(high) * 0.05, 1e-9)
        self.low = low if chart.from_zero and low == 0 else low - margin
        self.high, self.last = high + margin, chart.last

    def x(self, update: float) -> float:
        span = max(self.last - 1, 1)
        return LEFT + (WIDTH - LEFT - RIGHT) * min(max((update - 1) / span, 0.0), 1.0)

    def y(self, value: float) -> float:
        if self.logarithmic:
            value = math.log10(value) if value > 0 else self.low
        share = min(max((value - self.low) / (self.high - self.low), 0.0), 1.0)
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share

    def y_ticks(self) -> list[float]:
        if not self.logarithmic:
            return ticks(self.low, self.high)
        fine = [m * 10.0**p for p in range(math.floor(self.low), math.ceil(self.high) + 1) for m in (1, 2, 5)]
        inside = [v for v in fine if self.low <= math.log10(v) <= self.high]
        powers = [v for v in inside if math.isclose(math.log10(v) % 1, 0, abs_tol=1e-9)]
        return powers if len(powers) >= 3 else inside


def draw(chart: Chart) -> str:
    """A <figure> with its legend; empty where the chart has no point."""
    lines = [line for line in chart.lines if any(line.segments)]
    if not lines:
        return ""
    chart = Chart(chart.title, lines, chart.stages, chart.last, chart.from_zero, chart.logarithmic)
    axes = _Axes(chart)
    scale = ", logarithmic" if axes.logarithmic else ""
    names = [f'<span class="k{line.colour}{" dot" if line.dots else ""}">{escape(line.name)}</span>' for line in lines]
    legend = f'<span class="keys">{"".join(names)}</span>' if len(lines) > 1 else ""
    body = "".join([*_grid(axes), *_stages(axes, chart), *(_line(axes, line) for line in lines)])
    return (
        f"<figure><figcaption><b>{escape(chart.title)}</b>{scale}{legend}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(chart.title)}">{body}</svg></figure>'
    )


def _grid(axes: _Axes) -> Iterable[str]:
    values = axes.y_ticks()
    for value, label in zip(values, labels(values), strict=True):
        y = axes.y(value)
        yield f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>'
        yield f'<text x="{LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{label}</text>'
    for value in ticks(1, axes.last):
        if value == int(value) and value > 0:
            anchor = "end" if axes.x(value) > WIDTH - RIGHT - 20 else "middle"
            yield f'<text x="{axes.x(value):.1f}" y="{HEIGHT - 8}" text-anchor="{anchor}">{short(value)}</text>'


def _stages(axes: _Axes, chart: Chart) -> Iterable[str]:
    ends = [before for before, _ in chart.stages[1:]] + [chart.last]
    for (before, name), end in zip(chart.stages, ends, strict=True):
        left = axes.x(before + 0.5) if before else LEFT
        right = axes.x(end + 0.5)
        if before:
            yield f'<path class="stage" d="M{left:.1f} {TOP - 10}V{HEIGHT - BOTTOM}"/>'
        if right - left > 8 * len(name):
            middle = (left + right) / 2
            yield f'<text x="{middle:.1f}" y="{TOP - 10}" text-anchor="middle">{escape(name)}</text>'


def _line(axes: _Axes, line: Line) -> str:
    parts = []
    for segment in line.segments:
        places = [f"{axes.x(p.x):.1f} {axes.y(p.y):.1f}" for p in segment]
        if any(p.high > p.low for p in segment) and not line.dots:
            upper = [f"{axes.x(p.x):.1f} {axes.y(p.high):.1f}" for p in segment]
            lower = [f"{axes.x(p.x):.1f} {axes.y(p.low):.1f}" for p in reversed(segment)]
            parts.append(f'<path class="b{line.colour}" d="M{"L".join([*upper, *lower])}Z"/>')
        if places:
            parts.append(f'<path class="l{line.colour}" d="M{"L".join(places)}"/>')
        if line.dots or len(places) == 1:
            parts += [f'<circle class="d{line.colour}" cx="{p.split()[0]}" cy="{p.split()[1]}" r="3"/>' for p in places]
    return "".join(parts)
