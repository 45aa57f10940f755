"""Small sources in the layout of public data sets, written with the formats' own libraries; what they hold is known."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import webdataset
from shard_helpers import picture
from video_files import encode

from megatron_qwen3vl.importers.registry import find_format
from megatron_qwen3vl.importers.run import Import, SplitSummary, run_import
from megatron_qwen3vl.importers.settings import CommonSettings, read_settings


def run(name: str, source: Path, out: Path, *words: str) -> tuple[SplitSummary, ...]:
    """As the command does it."""
    chosen = find_format(name)
    common, settings = read_settings((CommonSettings, chosen.settings), words)
    return run_import(Import(chosen, source, out, settings, common), lambda _: None)


def webdataset_samples(folder: Path) -> dict[str, dict[str, Any]]:
    """Key -> the sample, as webdataset itself reads it: JSON parsed, the rest bytes."""
    found = {}
    tars = [str(path) for path in sorted(folder.glob("*.tar"))]
    for each in webdataset.WebDataset(tars, shardshuffle=False):
        files = {name: data for name, data in each.items() if not name.startswith("__")}
        found[each["__key__"]] = files | {"json": json.loads(files["json"])}
    return found


def named(summary: SplitSummary) -> dict[str, str]:
    """Key -> why it, or a part of it, was left out."""
    rows = [json.loads(line) for line in summary.path_of_named.read_text().splitlines()]
    return {row["key"]: row.get("left_out") or row["note"] for row in rows}


@dataclass(frozen=True)
class Pair:
    key: str
    image: bytes
    caption: str
    facts: dict[str, Any]


def write_pairs(folder: Path, shards: int = 2, samples: int = 4) -> list[Pair]:
    """img2dataset's ``webdataset`` output: 00000.tar, and 00000.parquet and 00000_stats.json beside it."""
    folder.mkdir()
    pairs = []
    for shard in range(shards):
        rows = []
        with webdataset.TarWriter(str(folder / f"{shard:05d}.tar")) as writer:
            for number in range(samples):
                place = shard * samples + number
                key = f"{shard:05d}{number:04d}"
                height, width = 40 + 8 * place, 64
                facts = {
                    "uid": hashlib.md5(key.encode()).hexdigest(), "url": f"https://example.org/{key}.jpg",
                    "caption": f"The alternative text {place}", "key": key, "status": "success", "error_message": None,
                    "width": width, "height": height, "original_width": 2 * width, "original_height": 2 * height,
                    "exif": "{}", "similarity": 0.2 + 0.02 * place, "punsafe": 0.1 * place, "LANGUAGE": "en",
                }  # fmt: skip
                pair = Pair(key, picture(height, width, "JPEG", place), f"A caption {place}, as it is.", facts)
                writer.write({"__key__": key, "jpg": pair.image, "txt": pair.caption, "json": facts})
                pairs.append(pair)
                rows.append(facts)
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{shard:05d}.parquet")
        (folder / f"{shard:05d}_stats.json").write_text(json.dumps({"count": samples, "successes": samples}))
    return pairs


OBELICS_SCHEMA = pa.schema(
    [("images", pa.list_(pa.string())), ("metadata", pa.string()),
     ("general_metadata", pa.string()), ("texts", pa.list_(pa.string()))]
)  # fmt: skip


def obelics_row(pieces: Sequence[str | int]) -> dict[str, Any]:
    """A text, or the number of an image."""
    addresses = [None if isinstance(piece, str) else address(piece) for piece in pieces]
    return {
        "images": addresses,
        "metadata": json.dumps([None if a is None else {"src": a, "alt_text": "x"} for a in addresses]),
        "general_metadata": json.dumps({"url": "https://example.org/page"}),
        "texts": [piece if isinstance(piece, str) else None for piece in pieces],
    }


def address(number: int) -> str:
    return f"https://example.org/pictures/{number}.png?size=large"


def write_obelics(folder: Path, rows: Sequence[Sequence[str | int]], images: int, as_json: bool = False) -> Path:
    """``folder``/train-00000-of-00001.parquet; returns the folder with files named by the sha256 of their address."""
    folder.mkdir(parents=True)
    table = pa.Table.from_pylist([obelics_row(row) for row in rows], schema=OBELICS_SCHEMA)
    if as_json:
        (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    else:
        pq.write_table(table, folder / "train-00000-of-00001.parquet", row_group_size=2)
    files = folder.parent / f"{folder.name}_images"
    files.mkdir()
    for number in range(images):
        digest = hashlib.sha256(address(number).encode()).hexdigest()
        (files / f"{digest}.png").write_bytes(picture(40 + number, 50, "PNG", number))
    return files


def mmc4_row(sentences: Sequence[str], images: Sequence[tuple[str, int, float]]) -> dict[str, Any]:
    """(file's name, sentence, similarity) of each image, with the fields that the data set has."""
    return {
        "text_list": list(sentences),
        "url": "http://www.example.org/page",
        "image_info": [
            {"image_name": name, "raw_url": f"http://example.org/{name}", "matched_text_index": place,
             "matched_sim": similarity, "face_detections": None} for name, place, similarity in images
        ],
        "similarity_matrix": [[0.1 for _ in sentences] for _ in images],
        "could_have_url_duplicate": 0,
    }  # fmt: skip


def write_mmc4(folder: Path, rows: Sequence[dict[str, Any]], names: Sequence[str], zipped: bool = True) -> Path:
    """docs_no_face_shard_0_v3.jsonl(.zip), and the folder of images that its own script fills."""
    folder.mkdir(parents=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    shard = "docs_no_face_shard_0_v3"
    if zipped:
        with zipfile.ZipFile(folder / f"{shard}.jsonl.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(f"{shard}.jsonl", lines)
    else:
        (folder / f"{shard}.jsonl").write_text(lines)
    files = folder.parent / f"{folder.name}_images"
    (files / f"{shard}_images").mkdir(parents=True)
    for number, name in enumerate(names):
        (files / f"{shard}_images" / name).write_bytes(picture(48, 40 + number, "JPEG", number))
    return files


Drawn = tuple[float, float, float, str]  # points from the left, points from the bottom, size of the type, words
FONTS = ("Helvetica", "Courier")


def make_pdf(pages: Sequence[Sequence[Drawn]], size: tuple[float, float] = (300, 400)) -> bytes:
    """Pages with these lines, in PDF 1.4's own words; lines that begin with $ are in Courier."""
    fonts = [f"<< /Type /Font /Subtype /Type1 /BaseFont /{name} >>".encode() for name in FONTS]
    objects = [b"<< /Type /Catalog /Pages 2 0 R >>", b"", *fonts]
    kids = []
    for lines in pages:
        drawn = "".join(
            f"BT /F{2 if words[0] == '$' else 1} {pt} Tf {x} {y} Td ({words}) Tj ET\n" for x, y, pt, words in lines
        ).encode()
        objects.append(b"<< /Length %d >>\nstream\n%sendstream" % (len(drawn), drawn))
        used = b"/Resources << /Font << /F1 3 0 R /F2 4 0 R >> >>"
        box = b"/MediaBox [0 0 %g %g]" % size
        objects.append(b"<< /Type /Page /Parent 2 0 R %s /Contents %d 0 R %s >>" % (box, len(objects), used))
        kids.append(f"{len(objects)} 0 R")
    objects[1] = f"<< /Type /Pages /Count {len(kids)} /Kids [{' '.join(kids)}] >>".encode()
    out = io.BytesIO()
    out.write(b"%PDF-1.4\n")
    places = []
    for number, body in enumerate(objects, 1):
        places.append(out.tell())
        out.write(b"%d 0 obj\n%s\nendobj\n" % (number, body))
    table = out.tell()
    out.write(b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1))
    out.write(b"".join(b"%010d 00000 n \n" % place for place in places))
    out.write(b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, table))
    return out.getvalue()


def page_of(number: int) -> list[Drawn]:
    """A heading, a paragraph of three lines, a list, and code."""
    return [
        (30, 350, 20, f"Chapter {number}"),
        (30, 320, 10, "The first line of a paragraph that has a hy-"),
        (30, 308, 10, "phen at its end and"),
        (30, 296, 10, f"ends on page {number}."),
        (30, 270, 10, "- one"),
        (30, 258, 10, "- two"),
        (30, 230, 10, "$ ls"),
        (42, 218, 10, "$ cd x"),
    ]


def write_pdfs(folder: Path, pages: Sequence[int]) -> None:
    folder.mkdir(parents=True)
    for number, count in enumerate(pages):
        (folder / f"paper {number}.pdf").write_bytes(make_pdf([page_of(page) for page in range(1, count + 1)]))


def write_activitynet(folder: Path, videos: int = 3) -> dict[str, Any]:
    """captions.json and videos/v_ID.mp4: 25 frames a second, each 4 s long but the last, of 2 s."""
    (folder / "videos").mkdir(parents=True)
    captions = {}
    for number in range(videos):
        name = f"v_Qab-{number}xYz"
        frames = 100 if number < videos - 1 else 50
        (folder / "videos" / f"{name}.mp4").write_bytes(encode(frames, Fraction(25)))
        captions[name] = {
            "duration": 4.0,
            "timestamps": [[0.0, 1.52], [1.1, 3.0], [2.5, 4.0]],
            "sentences": ["A person comes in.", f" They sit down {number} times. ", "The light goes out."],
        }
    (folder / "captions.json").write_text(json.dumps(captions))
    return captions


def write_jsonl(path: Path, texts: Sequence[str]) -> None:
    path.write_text("".join(json.dumps({"text": words, "meta": {"n": n}}) + "\n" for n, words in enumerate(texts)))
