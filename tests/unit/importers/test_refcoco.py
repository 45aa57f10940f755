"""RefCOCO's folder as the refer API lays it out; its pickle is read without unpickling, and hostile ones do nothing."""

from __future__ import annotations

import json
import os
import pickle
import random
import sys
from pathlib import Path
from typing import Any

import pytest
from coco_files import CATEGORIES, INFO, box_entry, image_entry
from public_sets import answered, block, do_import, draw, entries, named_box, near, trains
from pycocotools.coco import COCO as Reference

from megatron_qwen3vl.errors import UserError
from megatron_qwen3vl.importers.plain_pickle import load_plain
from megatron_qwen3vl.importers.refcoco import REFCOCO

SIZE = (80, 60)
BLOCKS = [(4.0, 4.0, 30.0, 50.0), (40.0, 10.0, 70.0, 50.0)]
NAME = "COCO_train2014_000000581857.jpg"


def reference_of(number: int, sentences: list[str], split: str = "train") -> dict[str, Any]:
    """A reference to the n-th annotation, with all fields of the published files."""
    told = [{"tokens": words.split(), "raw": words.title(), "sent_id": 10 * number + i, "sent": words}
            for i, words in enumerate(sentences)]  # fmt: skip
    return {"sent_ids": [each["sent_id"] for each in told], "file_name": f"COCO_train2014_000000581857_{number}.jpg",
            "ann_id": 1719310 + number, "ref_id": number, "image_id": 581857, "split": split, "sentences": told,
            "category_id": 1}  # fmt: skip


REFS = [
    reference_of(0, ["the lady with the blue shirt", "Lady", "the one with the hat"]),
    reference_of(1, ["man on the right", "the one with the hat", "man on the right"]),
    reference_of(1, ["a test of the man"], "testA"),
]


def write(folder: Path, refs: Any = REFS, protocol: int = 2) -> Path:
    """``data/refcoco`` and ``data/images/mscoco/images/train2014``."""
    source = folder / "refcoco"
    source.mkdir(parents=True)
    draw(folder / "images/mscoco/images/train2014" / NAME, SIZE, BLOCKS)
    annotations = [box_entry(1719310 + number, 581857, 1, edges) for number, edges in enumerate(BLOCKS)]
    tree = {"info": INFO, "licenses": [], "images": [image_entry(581857, SIZE, NAME), image_entry(7, SIZE)],
            "annotations": annotations, "categories": CATEGORIES}  # fmt: skip
    (source / "instances.json").write_text(json.dumps(tree))
    (source / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol))
    return source


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_expressions_mean_the_boxes_of_pycocotools(tmp_path: Path, protocol: int) -> None:
    source = write(tmp_path, protocol=protocol)
    reference = Reference(str(source / "instances.json"))
    (sample,), _ = do_import(REFCOCO, source, tmp_path / "out", "describe=0")
    shown = [block(sample.images[0], number) for number in range(2)]
    expected = {sent["sent"]: shown[ref["ann_id"] - 1719310] for ref in REFS[:2] for sent in ref["sentences"]}
    assert reference.anns[1719310]["bbox"][:2] == [round(shown[0][0] * 80 / 1000), round(shown[0][1] * 60 / 1000)]
    asked = set()
    for question, answer, _ in answered(sample):
        (entry,) = entries(answer)
        (expression,) = [words for words in expected if words in question]
        assert entry["label"] == "person" and near(entry["bbox_2d"], expected[expression])
        asked.add(expression)
    # one expression means two things; one stands twice; another split is not read
    assert asked == {"the lady with the blue shirt", "Lady", "man on the right"} and len(sample.turns) == 3


def test_boxes_are_described_and_long_lists_divided(tmp_path: Path) -> None:
    samples, _ = do_import(REFCOCO, write(tmp_path), tmp_path / "out", "describe=1", "turns=2")
    assert [sample.key for sample in samples] == ["000000581857_0", "000000581857_1"]
    turns = [turn for sample in samples for turn in answered(sample)]
    described = [turn for turn in turns if isinstance(turn[1], str)]
    for question, answer, _ in described:
        number = 1 if answer == "man on the right" else 0
        assert near(named_box(question) or [], block(samples[0].images[0], number)) and "person" in question
    assert len(turns) == 3 and len(described) >= 2
    (test,), _ = do_import(REFCOCO, tmp_path / "refcoco", tmp_path / "test", "split=testA", "describe=1")
    assert [answer for _, answer, _ in answered(test)] == ["a test of the man"]


def test_json_instead_of_the_pickle(tmp_path: Path) -> None:
    source = write(tmp_path)
    before, _ = do_import(REFCOCO, source, tmp_path / "before")
    (source / "refs(unc).p").write_bytes(b"not read")
    (source / "refs(unc).json").write_text(json.dumps(REFS))
    after, _ = do_import(REFCOCO, source, tmp_path / "after")
    assert [sample.body for sample in before] == [sample.body for sample in after]


def test_mistakes_are_said(tmp_path: Path) -> None:
    source = write(tmp_path)
    with pytest.raises(UserError, match=r"none of the splits dev; there are testA, train"):
        do_import(REFCOCO, source, tmp_path / "1", "split=dev")
    with pytest.raises(UserError, match=r"no refs\(umd\).json or refs\(umd\).p"):
        do_import(REFCOCO, source, tmp_path / "2", "split_by=umd")
    (source / "refs(google).p").write_bytes(pickle.dumps(REFS))
    with pytest.raises(UserError, match="choose by split_by"):
        do_import(REFCOCO, source, tmp_path / "3")
    (source / "refs(google).p").write_bytes(pickle.dumps([{"ann_id": 5, "split": "train", "image_id": 1}]))
    with pytest.raises(UserError, match="of different data sets"):
        do_import(REFCOCO, source, tmp_path / "4", "split_by=google")
    (source / "refs(google).p").write_bytes(pickle.dumps([{"ann_id": "5", "split": "train"}]))
    with pytest.raises(UserError, match=r"refs\(google\).p: \[0\].ann_id is '5'"):
        do_import(REFCOCO, source, tmp_path / "5", "split_by=google")


class Touch:
    """What a hostile pickle looks like: opening it calls ``os.system``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_that_would_run_something_is_refused_and_runs_nothing(tmp_path: Path, protocol: int) -> None:
    canary = tmp_path / "canary"
    source = write(tmp_path, [Touch(canary)], protocol)
    before = set(sys.modules)
    with pytest.raises(UserError, match="more than plain data; it was not unpickled"):
        do_import(REFCOCO, source, tmp_path / "out")
    assert not canary.exists()
    assert "antigravity" not in set(sys.modules) - before


@pytest.mark.parametrize(
    "program",
    [
        b"cantigravity\ngeohash\n.",  # GLOBAL
        b"\x80\x04\x8c\x0bantigravity\x94\x8c\x07geohash\x94\x93\x94.",  # STACK_GLOBAL
        b"(S'touch x'\niposix\nsystem\n.",  # INST
        b"\x80\x02\x82\x01.",  # EXT1
        b"Pabc\n.",  # PERSID
        b"\x80\x05\x96\x01\x00\x00\x00\x00\x00\x00\x00a.",  # BYTEARRAY8
    ],
)
def test_every_instruction_beyond_data_is_refused(tmp_path: Path, program: bytes) -> None:
    path = tmp_path / "x.p"
    path.write_bytes(program)
    with pytest.raises(UserError, match="not unpickled"):
        load_plain(path)
    assert "antigravity" not in sys.modules


DATA = [None, True, False, 0, -1, 255, 256, 65536, 2**31, -(2**40), 2**100, 1.5, "", "a", "ä" * 300, "\u2028\\'\"",
        b"xy", (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), [], [[]], {}, {"a": {"b": [1, (2,)]}}, {1: 2}]  # fmt: skip


@pytest.mark.parametrize("protocol", range(6))
def test_plain_data_is_what_pickle_wrote(tmp_path: Path, protocol: int) -> None:
    shared = ["one", "list"]
    data = [*(each for each in DATA if protocol > 2 or not isinstance(each, bytes)), shared, shared, "one" * 9]
    (tmp_path / "x.p").write_bytes(pickle.dumps(data, protocol))
    assert load_plain(tmp_path / "x.p") == data
    assert [type(each) for each in load_plain(tmp_path / "x.p")] == [type(each) for each in data]


def test_texts_of_python_2(tmp_path: Path) -> None:
    path = tmp_path / "x.p"
    path.write_bytes(b"\x80\x02]q\x00(U\x05sweetq\x01U\x02\xc3\xa4U\x01\xe4T\x01\x00\x00\x00bX\x02\x00\x00\x00\xc3\xa4e.")
    assert load_plain(path) == ["sweet", "ä", "ä", "b", "ä"]


def test_damaged_pickles_are_one_line(tmp_path: Path) -> None:
    whole = bytearray(pickle.dumps(REFS, 2))
    rng, path, refused = random.Random(1), tmp_path / "x.p", 0
    for turn in range(200):
        data = bytearray(whole[: rng.randrange(len(whole))]) if turn % 4 == 0 else bytearray(whole)
        for _ in range(rng.randrange(1, 6)):
            if data:
                data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(data)
        try:
            load_plain(path)
        except UserError as error:
            refused += 1
            assert len(error.problems) == 1 and "\n" not in error.problems[0]
    assert refused > 100


def test_it_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trains(REFCOCO, write(tmp_path), tmp_path, capsys)
