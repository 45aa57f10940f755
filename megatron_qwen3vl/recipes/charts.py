"""Charts and the code behind them: their data as JSON, their drawing as SVG, or the matplotlib code that made them."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from megatron_qwen3vl.recipes.drawing import Mark, Polygon, Polyline, Rectangle, Words, draw_marks, svg_of, text_width
from megatron_qwen3vl.recipes.record import Record, conversation, image, png, text
from megatron_qwen3vl.recipes.scenes import pick
from megatron_qwen3vl.recipes.splits import belongs

DOMAIN = "chart_code"
KINDS = ("bar", "line", "pie")
INKS = ("#d62728", "#1f77b4", "#2ca02c", "#ff7f0e", "#9467bd", "#17becf")
DARK, GRID = "#222222", "#dddddd"
SUBJECTS = {
    "Fruit sold": ("apples", "pears", "plums", "figs", "kiwis", "limes"),
    "Visitors": ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat"),
    "Rain in mm": ("Jan", "Feb", "Mar", "Apr", "May", "Jun"),
    "Pets": ("cats", "dogs", "fish", "birds", "mice", "frogs"),
    "Trips by": ("bus", "tram", "car", "bike", "train", "foot"),
    "Points": ("Ann", "Ben", "Cem", "Dana", "Eli", "Fay"),
}
DATA = "Give the data of this chart as JSON."
SVG = "Write SVG code that draws this chart."
MATPLOTLIB = "Write matplotlib code that draws this chart."
DPI = 64
LABEL_ROOM = 36  # pixels


@dataclass(frozen=True)
class ChartSettings:
    canvases: tuple[tuple[int, int], ...]  # width, height in pixels; one is drawn for each picture
    values: tuple[int, int]  # fewest and most values of a chart
    svg_share: float  # answers that are SVG code
    matplotlib_share: float  # pictures drawn by matplotlib from the code in the answer: slow; the rest is JSON data


@dataclass(frozen=True)
class Chart:
    kind: str
    title: str
    labels: tuple[str, ...]
    values: tuple[int, ...]
    step: int  # between two gridlines
    inks: tuple[str, ...]

    def data(self) -> dict[str, object]:
        return {"type": self.kind, "title": self.title, "data": dict(zip(self.labels, self.values, strict=True))}


def draw_chart(rng: np.random.Generator, settings: ChartSettings, width: int, held_out: bool) -> Chart:
    """A chart with no more values than ``width`` pixels have room for names."""
    while True:
        title = pick(rng, list(SUBJECTS))
        count = min(int(rng.integers(settings.values[0], settings.values[1] + 1)), (width - 32) // LABEL_ROOM)
        kind, step = pick(rng, KINDS), pick(rng, (1, 2, 5, 10))
        values = rng.integers(1, 9, count) * (1 if kind == "pie" else step)
        if kind == "pie":  # twentieths, so that angles are exact and can be read
            values = _shares(rng, count)
        labels = SUBJECTS[title][:count]
        inks = tuple(str(ink) for ink in rng.permutation(INKS)[:count])
        if belongs(f"{kind} {values.tolist()} {labels}", held_out):
            return Chart(kind, title, labels, tuple(int(v) for v in values), step, inks)


def _shares(rng: np.random.Generator, count: int) -> np.ndarray:
    """``count`` multiples of 5 that add up to 100."""
    cuts = np.sort(rng.choice(np.arange(1, 20), count - 1, replace=False))
    return np.diff([0, *cuts, 20]) * 5


def marks_of(chart: Chart, canvas: tuple[int, int]) -> list[Mark]:
    width, height = canvas
    title = Words(width // 2, 8, chart.title, DARK, True)
    return [title, *(_pie(chart, width, height) if chart.kind == "pie" else _plot(chart, width, height))]


def _plot(chart: Chart, width: int, height: int) -> list[Mark]:
    left, right, top, bottom = 26, width - 6, 20, height - 18
    lines = max(chart.values) // chart.step + 1
    unit = (bottom - top) // lines  # pixels of a step
    marks: list[Mark] = []
    for line in range(lines + 1):
        y = bottom - line * unit
        marks.append(Rectangle(left, y, right - left, 1, DARK if line == 0 else GRID))
        words = str(line * chart.step)
        if unit >= 11 or line % 2 == 0:
            marks.append(Words(left - 4 - text_width(words), y, words, DARK, False))
    advance = (right - left) // len(chart.values)
    points = []
    for index, (label, value) in enumerate(zip(chart.labels, chart.values, strict=True)):
        middle, tall = left + index * advance + advance // 2, value * unit // chart.step
        points.append((middle, bottom - tall))
        if chart.kind == "bar":
            marks.append(Rectangle(middle - advance // 3, bottom - tall, 2 * (advance // 3), tall, chart.inks[index]))
        marks.append(Words(middle, height - 9, label, DARK, True))
    if chart.kind == "line":
        marks.append(Polyline(tuple(points), chart.inks[0], 2))
        marks += [Rectangle(x - 2, y - 2, 5, 5, chart.inks[0]) for x, y in points]
    return marks


def _pie(chart: Chart, width: int, height: int) -> list[Mark]:
    """Slices clockwise from the top; their names beside squares of their colours."""
    radius = min(height - 28, width - 80) // 2
    x, y = 8 + radius, 20 + radius
    marks: list[Mark] = []
    begin = 0
    for index, (label, value) in enumerate(zip(chart.labels, chart.values, strict=True)):
        turns = np.radians(np.arange(begin * 3.6, (begin + value) * 3.6 + 0.1, 3.6))
        rim = [(round(x + radius * np.sin(a)), round(y - radius * np.cos(a))) for a in turns]
        marks.append(Polygon(((x, y), *rim), chart.inks[index]))
        begin += value
        line = 30 + index * 15
        marks.append(Rectangle(x + radius + 12, line - 4, 8, 8, chart.inks[index]))
        marks.append(Words(x + radius + 24, line, label, DARK, False))
    return marks


def matplotlib_code(chart: Chart, canvas: tuple[int, int]) -> str:
    size = f"({canvas[0] / DPI:g}, {canvas[1] / DPI:g})"
    inks = list(chart.inks)
    drawn = {
        "bar": f"ax.bar(labels, values, color={inks!r})",
        "line": f'ax.plot(labels, values, color="{inks[0]}", marker="s")',
        "pie": f"ax.pie(values, labels=labels, colors={inks!r}, startangle=90, counterclock=False)",
    }[chart.kind]
    return "\n".join(
        [
            "import matplotlib.pyplot as plt",
            "",
            f"labels = {list(chart.labels)!r}",
            f"values = {list(chart.values)!r}",
            f"fig, ax = plt.subplots(figsize={size}, dpi={DPI})",
            drawn,
            f'ax.set_title("{chart.title}")',
            "fig.tight_layout()",
        ]
    )


def run_matplotlib(code: str) -> bytes:
    """The PNG of the figure that ``code`` (of ``matplotlib_code``) leaves in ``fig``."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names: dict[str, object] = {}
    with matplotlib.rc_context({"font.size": 8}):
        exec(code, names)  # the picture is what the answer's code draws, by definition
        buffer = io.BytesIO()
        plt.savefig(buffer, format="png", metadata={"Software": None})
        plt.close("all")
    return buffer.getvalue()


def build(settings: ChartSettings, count: int, held_out: bool, seed: int) -> Iterator[Record]:
    for number in range(count):
        rng = np.random.default_rng([seed, held_out, number])
        canvas = pick(rng, settings.canvases)
        chart = draw_chart(rng, settings, canvas[0], held_out)
        form = rng.random()
        if form < settings.matplotlib_share:
            question, answer = MATPLOTLIB, matplotlib_code(chart, canvas)
            file = run_matplotlib(answer)
        else:
            marks = marks_of(chart, canvas)
            file = png(draw_marks(canvas, marks))
            if form < settings.matplotlib_share + settings.svg_share:
                question, answer = SVG, svg_of(canvas, marks)
            else:
                question, answer = DATA, json.dumps(chart.data())
        body = conversation([([image("0.png"), text(question)], answer)], DOMAIN)
        yield Record(f"{number:06d}", body, {"0.png": file})
