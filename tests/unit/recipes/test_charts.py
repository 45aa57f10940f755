"""Charts: JSON data is read off the pixels; SVG and matplotlib code, run by another renderer, draw the same picture."""

from __future__ import annotations

import ast
import json
import math
import subprocess
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
from built import built
from PIL import Image, ImageDraw, ImageFont
from seen import find_words, pixels

from megatron_qwen3vl.recipes.reader import ReadSample

SVG = "{http://www.w3.org/2000/svg}"


def drawn_svg(code: str) -> np.ndarray:
    """A small SVG renderer of its own: rect, polyline, polygon, text."""
    root = ElementTree.fromstring(code)
    picture = Image.new("RGB", (int(root.get("width", 0)), int(root.get("height", 0))), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(10)
    for node in root:
        at = {k: int(v) for k, v in node.items() if k in ("x", "y", "width", "height", "stroke-width")}
        points = [tuple(map(int, p.split(","))) for p in node.get("points", "").split()]
        if node.tag == f"{SVG}rect":
            picture.paste(node.get("fill"), (at["x"], at["y"], at["x"] + at["width"], at["y"] + at["height"]))
        elif node.tag == f"{SVG}polyline":
            draw.line(points, node.get("stroke"), at["stroke-width"])
        elif node.tag == f"{SVG}polygon":
            draw.polygon(points, node.get("fill"))
        else:
            assert node.tag == f"{SVG}text" and node.get("font-size") == "10"
            shift = round(font.getlength(node.text or "") / 2) if node.get("text-anchor") == "middle" else 0
            draw.text((at["x"] - shift, at["y"]), node.text or "", node.get("fill"), font, anchor="lm")
    return np.asarray(picture)


def parts(picture: np.ndarray) -> dict[tuple[int, ...], np.ndarray]:
    """Where each vivid colour is, by colour, from left to right."""
    flat = picture.reshape(-1, 3)
    colours, counts = np.unique(flat, axis=0, return_counts=True)
    vivid = [tuple(c) for c, n in zip(colours.tolist(), counts, strict=True) if max(c) - min(c) > 70 and n > 12]
    found = {c: (picture == c).all(-1) for c in vivid}
    return dict(sorted(found.items(), key=lambda item: np.nonzero(item[1])[1].min()))


def values_read(picture: np.ndarray, kind: str, count: int, step: int) -> list[float]:
    """The values, off the pixels: from gridlines for bars and lines, from areas for slices, in the key's order."""
    masks = parts(picture)
    if kind == "pie":
        legend = {c: np.nonzero(mask & key_area(masks))[0].min() for c, mask in masks.items()}
        areas = {c: int((mask & ~key_area(masks)).sum()) for c, mask in masks.items()}
        return [100 * areas[c] / sum(areas.values()) for c in sorted(legend, key=lambda c: legend[c])]
    axis = np.flatnonzero((picture == 0x22).all(-1).mean(1) > 0.5).max()
    grid = np.flatnonzero((picture == 0xDD).all(-1)[:, 26:].mean(1) > 0.15)
    unit = axis - grid[grid < axis].max()
    if kind == "bar":
        return [(axis - np.nonzero(mask)[0].min()) / unit * step for mask in masks.values()]
    (mask,) = masks.values()
    width = (picture.shape[1] - 6 - 26) // count
    columns = [26 + i * width + width // 2 for i in range(count)]
    squares = [np.flatnonzero(mask[:, column - 2 : column + 3].all(1)) for column in columns]
    return [(axis - rows.mean()) / unit * step for rows in squares]


def key_area(masks: dict[tuple[int, ...], np.ndarray]) -> np.ndarray:
    """Right of the pie: the squares of the key are all as far right as any colour gets."""
    area = np.zeros_like(next(iter(masks.values())))
    area[:, max(np.nonzero(mask)[1].max() for mask in masks.values()) - 8 :] = True
    return area


def wrong(sample: ReadSample, answer: str) -> bool:
    ((question, _),) = sample.turns
    picture = pixels(sample.images[0])
    if "SVG" in question:
        return not np.array_equal(drawn_svg(answer), picture)
    if "matplotlib" in question:
        return not np.array_equal(run(answer), picture)
    said = json.loads(answer)
    data = said["data"]
    missing = [w for w in (said["title"], *data) if not find_words(picture, w, 10)]
    steps = [1, 2, 5, 10] if said["type"] != "pie" else [1]
    steps = [s for s in steps if s == 1 or find_words(picture, str(2 * s), 10)]
    read = [values_read(picture, said["type"], len(data), step) for step in steps]
    near = 2.5 if said["type"] == "pie" else 0.3
    fits = any(
        len(values) == len(data)
        and all(
            abs(a - b) <= near * (1 if said["type"] == "pie" else step)
            for a, b in zip(values, data.values(), strict=True)
        )
        for values, step in zip(read, steps, strict=True)
    )
    return bool(missing) or not fits


def run(code: str) -> np.ndarray:
    """The code's figure, drawn by a Python of its own."""
    ast.parse(code)
    after = (
        "\nimport sys\nfig.savefig(sys.argv[1] if len(sys.argv) > 1 else sys.stdout.buffer, format='png',"
        " metadata={'Software': None})"
    )
    before = "import matplotlib\nmatplotlib.use('Agg')\nmatplotlib.rcParams['font.size'] = 8\n"
    done = subprocess.run([sys.executable, "-c", before + code + after], capture_output=True, check=True, timeout=120)
    return pixels(done.stdout)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[ReadSample]:
    return built("charts", tmp_path_factory.mktemp("charts"))


def kind_of(sample: ReadSample) -> str:
    return next(word for word in ("SVG", "matplotlib", "JSON") if word in sample.turns[0][0])


def test_data_and_code_are_those_of_the_picture(samples: list[ReadSample]) -> None:
    assert len(samples) == 200
    by_matplotlib = [s for s in samples if kind_of(s) == "matplotlib"]
    checked = [s for s in samples if kind_of(s) != "matplotlib"] + by_matplotlib[:2]  # a process each
    assert not [(s.key, s.turns[0][1]) for s in checked if wrong(s, s.turns[0][1])]
    assert {kind_of(s) for s in samples} == {"SVG", "matplotlib", "JSON"}
    types = [json.loads(s.turns[0][1])["type"] for s in samples if kind_of(s) == "JSON"]
    assert set(types) == {"bar", "line", "pie"}


def test_false_data_and_code_are_found(samples: list[ReadSample]) -> None:
    missed = total = 0
    for sample in samples[:40]:
        answer = sample.turns[0][1]
        if kind_of(sample) == "JSON":
            said = json.loads(answer)
            first, *_ = said["data"]
            step = 10 if said["type"] == "pie" else math.gcd(*said["data"].values())
            lies = [said | {"data": said["data"] | {first: said["data"][first] + step}}, said | {"title": "Rain in cm"}]
            missed += sum(not wrong(sample, json.dumps(lie)) for lie in lies)
            total += 2
        elif kind_of(sample) == "SVG":
            missed += not wrong(sample, answer.replace('fill="#222222">', 'fill="#882222">'))
            total += 1
    assert total > 30 and missed == 0
