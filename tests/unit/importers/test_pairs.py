"""Caption pairs as img2dataset writes them: webdataset reads what went in and what came out."""

from __future__ import annotations

from pathlib import Path

import pytest
import webdataset
from shard_helpers import LIMITS, picture, source, tokenizer
from text_and_media_sets import named, run, webdataset_samples, write_pairs

from megatron_qwen3vl.errors import UserError


def test_pairs_come_back_byte_for_byte_in_shards_of_another_size(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "laion")
    run("pairs", tmp_path / "laion", tmp_path / "out", "held_out=0", "shard_samples=3")
    assert len(list((tmp_path / "out" / "train").glob("*.tar"))) == 3
    tars = [str(path) for path in sorted((tmp_path / "laion").glob("*.tar"))]
    before = {each["__key__"]: each for each in webdataset.WebDataset(tars, shardshuffle=False)}
    after = webdataset_samples(tmp_path / "out" / "train")
    assert list(after) == list(before) == [pair.key for pair in pairs]
    for key, each in after.items():
        shown, words = each["json"]["content"]
        assert each[shown["image"]] == before[key]["jpg"] and words["text"].encode() == before[key]["txt"]


def test_our_reader_gives_the_same_as_from_the_source_itself(tmp_path: Path) -> None:
    """The shards that came in are read without any import: ids and pixels must not change by it."""
    pairs = write_pairs(tmp_path / "laion")
    run("pairs", tmp_path / "laion", tmp_path / "out", "held_out=0")
    plain, imported = source(tmp_path, "laion", LIMITS), source(tmp_path, "out/train", LIMITS)
    assert len(plain) == len(imported) == len(pairs) and list(plain.lengths) == list(imported.lengths)
    for number in range(len(pairs)):
        a, b = plain.read(number, True), imported.read(number, True)
        assert a.failure is None and b.failure is None
        assert (a.input_ids == b.input_ids).all() and (a.patches == b.patches).all() and (a.labels == b.labels).all()
    assert pairs[3].caption in tokenizer().decode(imported.read(3, False).input_ids.tolist())


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (("min_similarity=0.25",), lambda p: p.facts["similarity"] >= 0.25),
        (("min_side=60",), lambda p: min(p.facts["height"], p.facts["width"]) >= 60),
        (("max_aspect=1.2",), lambda p: max(p.facts["height"], 64) <= 1.2 * min(p.facts["height"], 64)),
        (("where=punsafe<0.35,LANGUAGE=en",), lambda p: p.facts["punsafe"] < 0.35),
        (("where=original_height>120",), lambda p: p.facts["original_height"] > 120),
        (("where=nowhere<3",), lambda p: False),
    ],
)
def test_filters(tmp_path: Path, words: tuple[str, ...], kept) -> None:
    pairs = write_pairs(tmp_path / "laion")
    (summary,) = run("pairs", tmp_path / "laion", tmp_path / "out", "held_out=0", *words)
    expected = [pair.key for pair in pairs if kept(pair)]
    assert list(webdataset_samples(tmp_path / "out" / "train")) == expected if expected else not summary.mark.samples
    assert summary.mark.unwanted == {words[0].split("=")[0]: len(pairs) - len(expected)} and not summary.mark.left_out


def test_another_caption(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "laion")
    run("pairs", tmp_path / "laion", tmp_path / "out", "held_out=0", "caption=caption")
    found = webdataset_samples(tmp_path / "out" / "train")
    assert [s["json"]["content"][1]["text"] for s in found.values()] == [pair.facts["caption"] for pair in pairs]


def test_bad_pairs_are_named(tmp_path: Path) -> None:
    with webdataset.TarWriter(str(tmp_path / "0.tar")) as writer:
        writer.write({"__key__": "good", "jpg": picture(40, 40, "JPEG"), "txt": "x"})
        writer.write({"__key__": "broken", "jpg": b"no image", "txt": "x"})
        writer.write({"__key__": "bare", "jpg": picture(40, 40, "JPEG")})
        writer.write({"__key__": "two", "jpg": picture(40, 40, "JPEG"), "png": picture(40, 40), "txt": "x"})
        writer.write({"__key__": "latin", "jpg": picture(40, 40, "JPEG"), "txt": "é".encode("latin1")})
        writer.write({"__key__": "facts", "jpg": picture(40, 40, "JPEG"), "txt": "x", "json": b"{"})
        writer.write({"__key__": "drawing", "jpg": picture(40, 40, "GIF"), "txt": "a GIF is named .jpg"})
    data = (tmp_path / "0.tar").read_bytes()
    (tmp_path / "1.tar").write_bytes(data[:1800])
    (summary,) = run("pairs", tmp_path, tmp_path / "out", "held_out=0")
    found = webdataset_samples(tmp_path / "out" / "train")
    assert [key for key in found if "_" not in key] == ["good", "drawing"] and "0.png" in found["drawing"]
    reasons = named(summary)
    assert set(reasons) >= {"broken", "bare", "two", "latin", "facts"} and summary.mark.left_out >= 6
    said = {"broken": "image", "bare": ".txt", "two": "2 images", "latin": "UTF-8", "facts": "JSON"}
    assert all(words in reasons[key] for key, words in said.items())
    assert any("cut off" in reason or "closing" in reason for reason in reasons.values())


def test_another_format_and_wrong_keys(tmp_path: Path) -> None:
    with webdataset.TarWriter(str(tmp_path / "0.tar")) as writer:
        writer.write({"__key__": "a", "cls": b"3", "flac": b"sound"})
    with pytest.raises(UserError, match=r"0: a has no image.*it has cls, flac"):
        run("pairs", tmp_path, tmp_path / "out")
    with pytest.raises(UserError) as error:
        run("pairs", tmp_path, tmp_path / "out", "where=similarity", "max_aspect=0.5", "min_side=x", "nonsense=1")
    keys = [problem.split(":")[0] for problem in error.value.problems]
    assert keys == ["nonsense=1", "min_side", "where", "max_aspect"]
