"""PixMo-Points' rows with the columns of its data card, as Parquet and as JSON lines."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from public_sets import answered, block, do_import, draw, entries, left_out, near, trains

from megatron_qwen3vl.errors import UserError
from megatron_qwen3vl.importers.pixmo_points import PIXMO_POINTS

SIZE = (80, 40)
BLOCKS = [(8.0, 4.0, 24.0, 36.0), (40.0, 8.0, 56.0, 20.0), (60.0, 24.0, 76.0, 36.0)]
URL = "https://example.org/a%20b/picture.jpg?size=large"
SCHEMA = pa.schema(
    [
        ("image_url", pa.string()),
        ("image_sha256", pa.string()),
        ("points", pa.list_(pa.struct([("x", pa.float64()), ("y", pa.float64())]))),
        ("count", pa.int64()),
        ("label", pa.string()),
        ("collection_method", pa.string()),
    ]
)


def row(label: str, blocks: Sequence[int], sha256: str, url: str = URL) -> dict[str, Any]:
    """Points in the middle of the blocks, in percent."""
    points = [{"x": (BLOCKS[n][0] + BLOCKS[n][2]) / 2 * 100 / 80, "y": (BLOCKS[n][1] + BLOCKS[n][3]) / 2 * 100 / 40}
              for n in blocks]  # fmt: skip
    return {"image_url": url, "image_sha256": sha256, "points": points, "count": len(points), "label": label,
            "collection_method": "pointing"}  # fmt: skip


def picture(folder: Path, name: str = "x.jpg", orientation: int = 1) -> str:
    """Named by its hash; returns it."""
    draw(folder / name, SIZE, BLOCKS, orientation)
    digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    (folder / name).rename(folder / digest)
    return digest


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows), SCHEMA), path)
    else:
        path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return path


@pytest.mark.parametrize("name", ["train.parquet", "train.jsonl"])
def test_points_lie_in_their_blocks_and_are_counted(tmp_path: Path, name: str) -> None:
    sha256 = picture(tmp_path / "images")
    labels = {f"thing {n}": blocks for n, blocks in enumerate(([0], [1, 2], [2, 0, 1], [1], [2], [0, 1]))}
    rows = [row(label, blocks, sha256) for label, blocks in labels.items()]
    kinds = set()
    for count in ("0", "0.5", "1"):
        source = write(tmp_path / name, rows)
        samples, _ = do_import(PIXMO_POINTS, source, tmp_path / count, f"count={count}", "turns=4")
        assert [len(sample.turns) for sample in samples] == [4, 2]  # rows of one picture in two samples
        assert len({sample.images[0] for sample in samples}) == 1
        for question, answer, number in [turn for sample in samples for turn in answered(sample)]:
            (label,) = [each for each in labels if each in question]
            kinds.add((type(answer), number is None))
            if isinstance(answer, str):
                assert int(answer) == len(labels[label])
                continue
            assert number is None or number == len(labels[label])
            assert [entry["label"] for entry in answer] == [label] * len(labels[label])
            for entry, place in zip(answer, labels[label], strict=True):  # in the row's order
                left, top, right, bottom = block(samples[0].images[0], place)
                assert near(entry["point_2d"], [(left + right) / 2, (top + bottom) / 2])
    assert kinds == {(str, True), (list, True), (list, False)}


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_annotators_saw_the_turned_picture(tmp_path: Path, orientation: int) -> None:
    sha256 = picture(tmp_path / "images", orientation=orientation)
    data = (tmp_path / "images" / sha256).read_bytes()
    left, top, right, bottom = block(data, 0)
    about = row("red", [], sha256) | {"points": [{"x": (left + right) / 20, "y": (top + bottom) / 20}]}
    source = write(tmp_path / "train.jsonl", [about])
    (shown,), _ = do_import(PIXMO_POINTS, source, tmp_path / "out", "count=0")
    ((_, answer, _),) = answered(shown)
    assert near(entries(answer)[0]["point_2d"], [(left + right) / 2, (top + bottom) / 2])
    stored = row("red", [0], sha256)
    source = write(tmp_path / "stored.jsonl", [stored])
    (other,), _ = do_import(PIXMO_POINTS, source, tmp_path / "stored", "count=0", "coordinates=stored")
    assert other.turns == shown.turns


def test_images_are_found_by_hash_by_address_and_by_path(tmp_path: Path) -> None:
    sha256 = picture(tmp_path / "images")
    data = (tmp_path / "images" / sha256).read_bytes()
    url = "https://example.org/other.png"
    (tmp_path / "images" / (hashlib.sha256(url.encode()).hexdigest() + ".jpg")).write_bytes(data)
    (tmp_path / "images/mine.jpg").write_bytes(data)
    rows = [row("one", [0], sha256), row("two", [0], "", url), row("three", [0], "") | {"image_path": "mine.jpg"}]
    samples, _ = do_import(PIXMO_POINTS, write(tmp_path / "train.jsonl", rows), tmp_path / "out", "count=1")
    assert [sample.turns[0][1][-1] for sample in samples] == ["1", "1", "1"]
    assert {sample.images[0] for sample in samples} == {data}


def test_what_is_left_out_is_named(tmp_path: Path) -> None:
    sha256 = picture(tmp_path / "images")
    wrong = hashlib.sha256(b"another file").hexdigest()
    (tmp_path / "images" / wrong).write_bytes((tmp_path / "images" / sha256).read_bytes())
    outside = row("outside", [0, 1], sha256) | {"points": [{"x": 101.0, "y": 5.0}]}
    rows = [row("there", [0], sha256), outside, row("nowhere", [0], "00" * 32), row("other", [0], wrong)]
    source = write(tmp_path / "train.parquet", [*rows, row("none", [], sha256)])
    samples, summary = do_import(PIXMO_POINTS, source, tmp_path / "out", "count=0")
    assert len(samples) == 1 and ["there" in question for question, _ in samples[0].turns] == [True]
    why = sorted(left_out(summary).values())
    assert len(why) == 3
    assert "outside the picture" in why[0] and "is not there" in why[1] and "not the one that was annotated" in why[2]
    (sample,), _ = do_import(PIXMO_POINTS, source, tmp_path / "negatives", "count=0", "negatives=true")
    assert [answer for question, answer, _ in answered(sample) if "none" in question] == [[]]


def test_pixels_and_many_points(tmp_path: Path) -> None:
    """PixMo-Count gives pixels; an answer holds at most ``max_objects`` points."""
    sha256 = picture(tmp_path / "images")
    columns = {"x": [8.0 + n for n in range(10)], "y": [20.0] * 10}  # as PixMo-Count writes them
    source = tmp_path / "train.parquet"
    pq.write_table(pa.Table.from_pylist([row("many", [], sha256) | {"points": columns}]), source)
    (sample,), _ = do_import(PIXMO_POINTS, source, tmp_path / "out", "units=pixels", "count=0")
    ((_, answer, _),) = answered(sample)
    assert [entry["point_2d"] for entry in answer] == [[round((8 + n) * 12.5), 500] for n in range(10)]
    (sample,), _ = do_import(PIXMO_POINTS, source, tmp_path / "few", "units=pixels", "count=0", "max_objects=9")
    assert [answer for _, answer, _ in answered(sample)] == ["10"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": None}, "row 2.label is None"),
        ({"points": [[1, 2]]}, "row 2: points[0] is not {x, y}"),
        ({"points": [{"x": 1}]}, "row 2: points[0].y is missing"),
        ({"image_url": 5}, "row 2.image_url is 5"),
    ],
)
def test_other_rows_are_one_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    sha256 = picture(tmp_path / "images")
    source = write(tmp_path / "train.jsonl", [row("a", [0], sha256), row("b", [0], sha256) | change])
    with pytest.raises(UserError) as raised:
        do_import(PIXMO_POINTS, source, tmp_path / "out")
    (problem,) = raised.value.problems
    assert problem.startswith(str(source)) and message in problem


def test_it_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row(f"thing {n}", [n], picture(tmp_path / "images")) for n in range(3)]
    trains(PIXMO_POINTS, write(tmp_path / "train.parquet", rows), tmp_path, capsys)
