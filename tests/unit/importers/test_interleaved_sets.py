"""OBELICS and MMC4: texts and images in the order that the data sets' own lists give."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from shard_helpers import picture, source, tokenizer
from text_and_media_sets import address, mmc4_row, named, run, webdataset_samples, write_mmc4, write_obelics

from megatron_qwen3vl.errors import UserError

ROWS = [["Before.\n\nAll.", 0, "between", 1, 2, "after"], [3, "one, then text"], ["no image at all"], [0, 0, "twice"]]


def shown(sample: dict) -> list[str | bytes]:
    """Texts, and the bytes of images."""
    return [p["text"] if p["type"] == "text" else sample[p["image"]] for p in sample["json"]["content"]]


@pytest.mark.parametrize("as_json", [False, True])
def test_obelics(tmp_path: Path, as_json: bool) -> None:
    images = write_obelics(tmp_path / "obelics", ROWS, 4, as_json)
    (summary,) = run("obelics", tmp_path / "obelics", tmp_path / "out", f"images={images}", "held_out=0")
    found = list(webdataset_samples(tmp_path / "out" / "train").values())
    if as_json:
        rows = [json.loads(line) for line in (tmp_path / "obelics" / "train.jsonl").read_text().splitlines()]
    else:
        rows = pq.read_table(tmp_path / "obelics" / "train-00000-of-00001.parquet").to_pylist()
    expected = [
        [
            words if at is None else (images / f"{hashlib.sha256(at.encode()).hexdigest()}.png").read_bytes()
            for at, words in zip(row["images"], row["texts"], strict=True)
        ]
        for row in rows
        if any(row["images"])
    ]
    assert [shown(sample) for sample in found] == expected and summary.mark.unwanted == {"min_images": 1}
    assert [name for name in found[2] if name != "json"] == ["0.png"]  # one image twice is one file
    ours = source(tmp_path, "out/train")
    read = ours.read(0, True)
    assert read.failure is None and len(read.grids) == 3
    assert "between" in tokenizer().decode(read.input_ids.tolist())


def test_obelics_images_that_are_not_there_leave_the_document(tmp_path: Path) -> None:
    images = write_obelics(tmp_path / "obelics", [["a", 0, "b", 1, "c", 2]], 2)
    digest = hashlib.sha256(address(1).encode()).hexdigest()
    (images / f"{digest}.png").write_bytes(b"<html>404</html>")
    (summary,) = run("obelics", tmp_path / "obelics", tmp_path / "out", f"images={images}", "held_out=0")
    (sample,) = webdataset_samples(tmp_path / "out" / "train").values()
    assert shown(sample) == ["a", picture(40, 50, "PNG", 0), "b", "c"] and summary.mark.notes == 2
    notes = summary.path_of_named.read_text()
    assert address(1) in notes and address(2) in notes and "not there" in notes and "cannot be read" in notes
    (summary,) = run("obelics", tmp_path / "obelics", tmp_path / "2", f"images={images}", "held_out=0", "min_images=2")
    assert summary.mark.unwanted == {"min_images": 1} and not summary.mark.samples
    (summary,) = run("obelics", tmp_path / "obelics", tmp_path / "3", f"images={images}", "held_out=0", "min_side=41",
                     "min_images=0")  # fmt: skip
    assert [shown(sample) for sample in webdataset_samples(tmp_path / "3" / "train").values()] == [["a", "b", "c"]]


def test_obelics_images_that_img2dataset_fetched(tmp_path: Path) -> None:
    """Its output_format=files: 00000.parquet has url, key and status, the file is 00000/KEY.jpg."""
    write_obelics(tmp_path / "obelics", [["a", 0, 1, 2]], 0)
    images = tmp_path / "fetched"
    (images / "00000").mkdir(parents=True)
    rows = [{"url": address(n), "key": f"00000{n:04d}", "status": "success" if n != 1 else "failed_to_download",
             "width": 50} for n in (2, 1, 0)]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), images / "00000.parquet")
    for number in (0, 2):
        (images / "00000" / f"00000{number:04d}.jpg").write_bytes(picture(40, 50, "JPEG", number))
    (summary,) = run("obelics", tmp_path / "obelics", tmp_path / "out", f"images={images}", "find=img2dataset",
                     "held_out=0")  # fmt: skip
    (sample,) = webdataset_samples(tmp_path / "out" / "train").values()
    assert shown(sample) == ["a", picture(40, 50, "JPEG", 0), picture(40, 50, "JPEG", 2)] and summary.mark.notes == 1

    listed = tmp_path / "list.jsonl"
    lines = [json.dumps({"url": address(n), "file": f"00000/00000{n:04d}.jpg"}) for n in (0, 2)]
    listed.write_text("\n".join(lines))
    run("obelics", tmp_path / "obelics", tmp_path / "2", f"images={images}", f"find={listed}", "held_out=0")
    assert [shown(each) for each in webdataset_samples(tmp_path / "2" / "train").values()] == [shown(sample)]


def test_a_list_of_files_leads_nowhere_outside(tmp_path: Path) -> None:
    write_obelics(tmp_path / "obelics", [["a", 0]], 0)
    (tmp_path / "images").mkdir()
    (tmp_path / "secret.png").write_bytes(picture(40, 50))
    (tmp_path / "list.jsonl").write_text(json.dumps({"url": address(0), "file": "../secret.png"}))
    (summary,) = run("obelics", tmp_path / "obelics", tmp_path / "out", f"images={tmp_path / 'images'}",
                     f"find={tmp_path / 'list.jsonl'}", "held_out=0", "min_images=0")  # fmt: skip
    assert "is not a name inside" in summary.path_of_named.read_text()
    assert [shown(s) for s in webdataset_samples(tmp_path / "out" / "train").values()] == [["a"]]


@pytest.mark.parametrize("zipped", [True, False])
def test_mmc4(tmp_path: Path, zipped: bool) -> None:
    """An image stands before its sentence; sentences between two images are one text."""
    rows = [
        mmc4_row(["One.", "Two.", "Three.", "Four."], [("b.jpg", 2, 0.3), ("a.jpg", 0, 0.25), ("c.jpg", 2, 0.2)]),
        mmc4_row(["Only text."], []),
        mmc4_row(["Last."], [("a.jpg", 0, 0.21)]),
    ]
    files = write_mmc4(tmp_path / "mmc4", rows, ["a.jpg", "b.jpg", "c.jpg"], zipped)
    a, b, c = (path.read_bytes() for path in sorted(files.rglob("*.jpg")))
    (summary,) = run("mmc4", tmp_path / "mmc4", tmp_path / "out", f"images={files}", "held_out=0")
    found = [shown(sample) for sample in webdataset_samples(tmp_path / "out" / "train").values()]
    assert found == [[a, "One. Two.", b, c, "Three. Four."], [a, "Last."]]
    assert summary.mark.unwanted == {"min_images": 1}
    words = (f"images={files}", "held_out=0", "min_similarity=0.22", "min_images=0")
    run("mmc4", tmp_path / "mmc4", tmp_path / "2", *words)
    found = [shown(sample) for sample in webdataset_samples(tmp_path / "2" / "train").values()]
    assert found == [[a, "One. Two.", b, "Three. Four."], ["Only text."], ["Last."]]
    flat = next(files.iterdir())
    run("mmc4", tmp_path / "mmc4", tmp_path / "3", f"images={flat}", "held_out=0")  # the folder itself
    assert len(webdataset_samples(tmp_path / "3" / "train")) == 2


def test_bad_rows_and_names_that_lead_outside(tmp_path: Path) -> None:
    rows = [
        mmc4_row(["Good."], [("../../secret.jpg", 0, 0.3), ("a.jpg", 0, 0.3)]),
        mmc4_row(["x"], [("a.jpg", 1, 0.3)]),
        mmc4_row(["x"], [("a.jpg", True, 0.3)]),
        mmc4_row(["x"], []) | {"text_list": "x"},
        mmc4_row(["x"], []) | {"image_info": [{"raw_url": "x"}]},
    ]
    files = write_mmc4(tmp_path / "mmc4", rows, ["a.jpg"])
    (tmp_path / "secret.jpg").write_bytes(picture(40, 40, "JPEG"))
    (summary,) = run("mmc4", tmp_path / "mmc4", tmp_path / "out", f"images={files}", "held_out=0")
    (sample,) = webdataset_samples(tmp_path / "out" / "train").values()
    assert len(shown(sample)) == 2 and summary.mark.left_out == 4 and summary.mark.notes == 1
    reasons = list(named(summary).values())
    expected = ["not a name inside", "matched_text_index", "matched_text_index", "text_list", "image_info[0]"]
    assert all(words in reason for words, reason in zip(expected, reasons, strict=True))


def test_another_format_is_one_clear_error(tmp_path: Path) -> None:
    images = write_obelics(tmp_path / "obelics", ROWS, 1)
    pq.write_table(pa.table({"url": ["x"], "texts": [["x"]]}), tmp_path / "laion.parquet")
    with pytest.raises(UserError, match=r"laion\.parquet has no field 'images'; its fields are url, texts"):
        run("obelics", tmp_path / "laion.parquet", tmp_path / "out", f"images={images}")
    (tmp_path / "a.jsonl").write_text('{"text": "x"}')
    with pytest.raises(UserError, match=r"a\.jsonl, line 1, has no field 'text_list'"):
        run("mmc4", tmp_path / "a.jsonl", tmp_path / "out", f"images={images}")
    with pytest.raises(UserError) as error:
        run("obelics", tmp_path / "obelics", tmp_path / "out", "images=nowhere", "find=crc32")
    assert [problem.split(":")[0] for problem in error.value.problems] == ["images", "find"]
    with pytest.raises(UserError, match="images: missing"):
        run("mmc4", tmp_path / "a.jsonl", tmp_path / "out")
