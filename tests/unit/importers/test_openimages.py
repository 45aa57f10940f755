"""OpenImages' tables with the columns that its download page lists, and its pictures by their ids."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from public_sets import answered, block, check_boxes, do_import, draw, left_out, named_box, trains

from megatron_qwen3vl.errors import UserError
from megatron_qwen3vl.importers.openimages import OPENIMAGES

COLUMNS = ("ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,"
           "IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside")  # fmt: skip
DOG, FACE, PERSON, MAN = "/m/0bt9lr", "/m/0dzct", "/m/01g317", "/m/04yx4"
SIZE = (80, 40)
BLOCKS = [(8.0, 4.0, 24.0, 36.0), (40.0, 8.0, 56.0, 20.0), (60.0, 24.0, 76.0, 36.0)]


def row(image: str, label: str, number: int, flags: str = "0,0,0,0,0") -> str:
    left, top, right, bottom = BLOCKS[number]
    return f"{image},xclick,{label},1,{left / 80},{right / 80},{top / 40},{bottom / 40},{flags}"


def write(folder: Path, rows: list[str], head: str = COLUMNS) -> Path:
    classes = folder / "class-descriptions-boxable.csv"
    folder.mkdir(parents=True, exist_ok=True)
    classes.write_text(f'{DOG},Dog\n{FACE},"Human face"\n{PERSON},Person\n{MAN},Man\n')
    tree = {"LabelName": "/m/0bl9f", "Subcategory": [{"LabelName": "/m/0jbk", "Subcategory": [{"LabelName": DOG}]},
            {"LabelName": PERSON, "Subcategory": [{"LabelName": MAN, "Part": [{"LabelName": FACE}]}]}]}  # fmt: skip
    (folder / "bbox_labels_600_hierarchy.json").write_text(json.dumps(tree))
    path = folder / "oidv6-train-annotations-bbox.csv"
    path.write_text("\n".join([head, *rows]) + "\n")
    return path


def test_boxes_are_the_pixels_in_the_tables_order(tmp_path: Path) -> None:
    ids = ("000ff0000000000a", "000026e7ee790996")
    draw(tmp_path / "train/000ff0000000000a.jpg", SIZE, BLOCKS)
    draw(tmp_path / "train/000026e7ee790996.jpg", SIZE, BLOCKS, orientation=6)
    # rows of one picture need not follow one another; V6 has more columns at the end
    head = COLUMNS + ",XClick1X"
    rows = [row(ids[0], DOG, 0), row(ids[1], FACE, 1), row(ids[0], DOG, 1), row(ids[1], DOG, 0), row(ids[0], FACE, 2)]
    source = write(tmp_path, [f"{line},0.5" for line in rows], head)
    with open(source, newline="") as file:  # the published columns, by name
        (first, *_) = csv.DictReader(file)
    assert (first["ImageID"], float(first["XMin"]), first["IsGroupOf"]) == (ids[0], 0.1, "0")
    samples, _ = do_import(OPENIMAGES, source, tmp_path / "out", "turns=6")
    assert [sample.key for sample in samples] == list(ids)
    shown = [[block(sample.images[0], number) for number in range(3)] for sample in samples]
    assert check_boxes(samples[0], {"dog": shown[0][:2], "human face": shown[0][2:]})
    assert check_boxes(samples[1], {"dog": shown[1][:1], "human face": shown[1][1:2]})


def test_groups_and_flags(tmp_path: Path) -> None:
    """IsGroupOf: more than five in one box. A flag that is not known (-1) is no flag."""
    draw(tmp_path / "train/0a.jpg", SIZE, BLOCKS)
    source = write(tmp_path, [row("0a", DOG, 0), row("0a", DOG, 1, "0,0,1,0,0"), row("0a", FACE, 2, "1,-1,0,-1,-1")])
    words = ["turns=6", "tasks=categories,label,count,name"]
    (sample,), _ = do_import(OPENIMAGES, source, tmp_path / "out", *words)
    for question, answer, _ in answered(sample):
        assert named_box(question) or "dog" not in question, (question, answer)
    (grouped,), _ = do_import(OPENIMAGES, source, tmp_path / "grouped", "turns=6", "groups=label", "tasks=label")
    labels = {answer["label"] if isinstance(answer, dict) else answer[0]["label"] for _, answer, _ in answered(grouped)}
    assert "group of dog" in labels and "dog" not in labels
    none, summary = do_import(OPENIMAGES, source, tmp_path / "none", "leave_out=occluded", "tasks=label,count")
    assert not none and summary.mark.unwanted == {"nothing to ask about": 1}
    some, _ = do_import(OPENIMAGES, source, tmp_path / "some", "leave_out=truncated,depiction,inside", "tasks=label")
    assert len(some) == 1


def test_an_upper_class_is_not_whole_beside_a_lower_one(tmp_path: Path) -> None:
    """A man has no box as a person; his face, a part of him, is no kind of man."""
    draw(tmp_path / "train/0a.jpg", SIZE, BLOCKS)
    source = write(tmp_path, [row("0a", PERSON, 0), row("0a", MAN, 1), row("0a", FACE, 2)])
    words = ["turns=30", "tasks=label,count"]
    (sample,), _ = do_import(OPENIMAGES, source, tmp_path / "out", *words)
    asked = " ".join(question for question, _ in sample.turns)
    assert "person" not in asked and "man" in asked.replace("human", "") and "human face" in asked
    (named,), _ = do_import(OPENIMAGES, source, tmp_path / "names", "turns=30", "tasks=name")
    assert "person" in {answer for _, answer, _ in answered(named)}
    (loose,), _ = do_import(OPENIMAGES, source, tmp_path / "loose", *words, "hierarchy=no")
    assert "person" in " ".join(question for question, _ in loose.turns)
    (tmp_path / "bbox_labels_600_hierarchy.json").write_text('{"Subcategory": []}')
    with pytest.raises(UserError, match="a node without LabelName"):
        do_import(OPENIMAGES, source, tmp_path / "bad")
    (tmp_path / "bbox_labels_600_hierarchy.json").unlink()
    with pytest.raises(UserError, match="or go without by hierarchy=no"):
        do_import(OPENIMAGES, source, tmp_path / "none")


@pytest.mark.parametrize(
    ("head", "line", "message"),
    [
        (COLUMNS.replace("IsGroupOf", "Group"), row("0a", DOG, 0), "no column IsGroupOf"),
        (COLUMNS, row("0a", "/m/unknown", 0), "line 2: LabelName '/m/unknown'"),
        (COLUMNS, row("0a", DOG, 0).replace("0.1,", "left,"), "line 2: XMin, YMin, XMax, YMax are not all numbers"),
        (COLUMNS, row("0a", DOG, 0) + ",1", "line 2: 14 columns"),
    ],
)
def test_another_table_is_one_line_with_file_and_field(tmp_path: Path, head: str, line: str, message: str) -> None:
    (tmp_path / "train").mkdir()
    source = write(tmp_path, [line], head)
    with pytest.raises(UserError) as raised:
        do_import(OPENIMAGES, source, tmp_path / "out")
    (problem,) = raised.value.problems
    assert problem.startswith(str(source)) and message in problem


def test_missing_tables_and_pictures_are_named(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    source = write(tmp_path, [row("0a", DOG, 0)])
    samples, summary = do_import(OPENIMAGES, source, tmp_path / "out")
    assert not samples and "0a.jpg is not there" in left_out(summary)["0a"]
    (tmp_path / "class-descriptions-boxable.csv").unlink()
    with pytest.raises(UserError, match="give it as classes=FILE"):
        do_import(OPENIMAGES, source, tmp_path / "out2")
    with pytest.raises(UserError, match="negatives: a class without a box"):
        do_import(OPENIMAGES, source, tmp_path / "out3", "negatives=true")


def test_it_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw(tmp_path / "train/0a.jpg", SIZE, BLOCKS)
    trains(OPENIMAGES, write(tmp_path, [row("0a", DOG, 0), row("0a", FACE, 1)]), tmp_path, capsys)
