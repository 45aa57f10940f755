"""Thinning, round numbers on the axes, and places in the picture."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_qwen3vl.errors import UserError
from megatron_qwen3vl.report.chart import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    WIDTH,
    Chart,
    Line,
    Point,
    draw,
    labels,
    short,
    thin,
    ticks,
)
from megatron_qwen3vl.report.curves import write_curves
from megatron_qwen3vl.report.files import Series
from megatron_qwen3vl.report.page import write_report
from tests.unit.report.report_run import write_lines, write_run


def series(values: list[float], first: int = 1) -> Series:
    made = Series()
    for x, y in enumerate(values, start=first):
        made.add(x, y)
    return made


def test_few_values_stay_as_they_are() -> None:
    values = [3.0, 1.0, 2.0]
    assert thin(series(values), last=3) == [Point(x, y, y, y) for x, y in enumerate(values, start=1)]


@given(
    st.lists(st.floats(-1e6, 1e6) | st.just(math.nan), max_size=400), st.integers(2, 60), st.integers(1, 300)
)
def test_thinning_keeps_range_order_and_mean(values: list[float], points: int, first: int) -> None:
    last = first + len(values) + 5
    thinned = thin(series(values, first), last, points)
    finite = [v for v in values if math.isfinite(v)]
    assert len(thinned) <= points + 1
    assert [p.x for p in thinned] == sorted({p.x for p in thinned})
    assert bool(thinned) == bool(finite)
    if finite:
        assert (min(p.low for p in thinned), max(p.high for p in thinned)) == (min(finite), max(finite))
        assert all(p.low - 1e-9 <= p.y <= p.high + 1e-9 for p in thinned)


def test_neighbours_become_their_mean() -> None:
    thinned = thin(series([1.0, 3.0, math.nan, 5.0, 10.0, 20.0]), last=6, points=3)
    assert thinned == [Point(1.5, 2.0, 1.0, 3.0), Point(4.0, 5.0, 5.0, 5.0), Point(5.5, 15.0, 10.0, 20.0)]


@given(st.floats(-1e3, 1e3), st.floats(1e-3, 1e9))
def test_ticks_are_round_and_inside(low: float, width: float) -> None:
    high = low + width
    found = ticks(low, high)
    step = found[1] - found[0] if len(found) > 1 else 0.0
    assert 1 <= len(found) <= 6
    assert all(low - 1e-6 * width <= tick <= high + 1e-6 * width for tick in found)
    assert all(math.isclose(b - a, step, rel_tol=1e-6) for a, b in zip(found, found[1:], strict=False))


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1234, "1,234"), (1.5e6, "1.5M"), (2e9, "2G"), (0.012345, "0.0123"), (4e-7, "4e-07"), (math.nan, "–")],
)
def test_short_numbers(value: float, text: str) -> None:
    assert short(value) == text


def test_axis_labels_tell_their_places_apart() -> None:
    assert labels([2.101, 2.102, 2.103]) == ["2.101", "2.102", "2.103"]
    assert labels([0.0, 2.5, 5.0]) == ["0.0", "2.5", "5.0"]
    assert labels([6.0, 7.0]) == ["6", "7"]
    assert labels([0.0, 1e-5, 2e-5]) == ["0", "1e-05", "2e-05"]
    assert labels([0.1, 1.0, 10.0]) == ["0.1", "1", "10"]  # a logarithmic axis
    assert labels([0.0, 20000.0]) == ["0", "20,000"]
    assert labels([3.0]) == ["3"]


def test_a_flat_curve_and_one_point_can_be_drawn() -> None:
    for values in ([0.0, 0.0, 0.0], [5.0], [-1.0, -1.0]):
        segment = thin(series(values), len(values))
        for logarithmic in (False, True):
            drawn = draw(Chart("t", [Line("a", [segment], 1)], [(0, "s0")], len(values), logarithmic=logarithmic))
            assert "nan" not in drawn and "inf" not in drawn and "<path" in drawn
    assert draw(Chart("t", [Line("a", [], 1)], [(0, "s0")], 5)) == ""


def test_names_are_escaped() -> None:
    drawn = draw(Chart("<t>", [Line(name, [thin(series([1.0, 2.0]), 2)], 1) for name in "<&"], [(0, "<s>")], 2))
    assert [drawn.count(name) for name in ("<t>", "<s>", "<<", ">&<")] == [0, 0, 0, 0]
    assert drawn.count("&lt;t&gt;") == 2 and drawn.count("&lt;s&gt;") == 1 and ">&amp;<" in drawn


def places(drawn: str, kind: str) -> list[tuple[float, float]]:
    (path,) = re.findall(rf'<path class="{kind}" d="M([^"]*)"', drawn)
    return [(float(x), float(y)) for x, y in (pair.split() for pair in path.split("L"))]


def test_points_stand_where_they_belong() -> None:
    segment = thin(series([10.0, 0.0, 5.0]), 3)
    drawn = draw(Chart("t", [Line("a", [segment], 1)], [(0, "s0")], 3, from_zero=True))
    (x1, y1), (x2, y2), (x3, y3) = places(drawn, "l1")
    assert (x1, x3) == (LEFT, WIDTH - RIGHT) and x2 == pytest.approx((x1 + x3) / 2)
    assert y2 == HEIGHT - BOTTOM and y1 < y3 < y2 and y3 == pytest.approx((y1 + y2) / 2, abs=0.1)


def test_a_logarithmic_axis_has_equal_steps_for_equal_factors() -> None:
    segment = thin(series([1.0, 10.0, 100.0]), 3)
    drawn = draw(Chart("t", [Line("a", [segment], 1)], [(0, "s0")], 3, logarithmic=True))
    (_, y1), (_, y2), (_, y3) = places(drawn, "l1")
    assert y1 - y2 == pytest.approx(y2 - y3, abs=0.2) and y1 > y3 and "logarithmic" in drawn


def test_held_out_losses_stand_at_their_updates(tmp_path: Path) -> None:
    """Ten updates: s0 has four, so step 4 of s0 is update 4 and step 3 of s1 is update 7."""
    page = write_report(write_run(tmp_path / "run")).read_text()
    loss = page[page.index('aria-label="Loss"') :]
    dots = [float(x) for x in re.findall(r'<circle class="d3" cx="([\d.]+)"', loss[: loss.index("</svg>")])]
    width = WIDTH - LEFT - RIGHT
    assert dots == pytest.approx([LEFT + width * 3 / 9, LEFT + width * 6 / 9], abs=0.1)


def test_a_picture_for_the_readme(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    picture = write_curves(run, tmp_path / "loss.png")
    assert picture == tmp_path / "loss.png" and picture.read_bytes().startswith(b"\x89PNG\r\n")
    write_lines(run / "metrics.jsonl", [])
    with pytest.raises(UserError, match="no losses"):
        write_curves(run, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
