"""COCO's own files, read by pycocotools too; boxes compared with it and with the pixels that the shards hold."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from coco_files import box_entry, boxes_of_two, crowd_entry, image_entry, write
from public_sets import answered, block, check_boxes, do_import, draw, entries, left_out, named_box, near, trains
from pycocotools.coco import COCO as Reference

from megatron_qwen3vl.errors import UserError
from megatron_qwen3vl.importers.coco import COCO


def reference_boxes(reference: Reference, image: int) -> dict[str, list[list[float]]]:
    """By label, from the masks that pycocotools draws, in thousandths."""
    found: dict[str, list[list[float]]] = {}
    for entry in reference.loadAnns(reference.getAnnIds(imgIds=image)):
        mask = reference.annToMask(entry)
        rows, columns = np.nonzero(mask)
        height, width = mask.shape
        (category,) = reference.loadCats(entry["category_id"])
        found.setdefault(category["name"], []).append(
            [columns.min() * 1000 / width, rows.min() * 1000 / height,
             (columns.max() + 1) * 1000 / width, (rows.max() + 1) * 1000 / height]
        )  # fmt: skip
    return found


def test_boxes_are_those_of_pycocotools_and_of_the_pixels(tmp_path: Path) -> None:
    source = boxes_of_two(tmp_path)
    reference = Reference(str(source))
    samples, summary = do_import(COCO, source, tmp_path / "out", "turns=8")
    assert [sample.key for sample in samples] == ["000000391895", "000000000009"]  # the list's order
    assert summary.mark.left_out == 0
    for sample in samples:
        number = int(sample.key)
        assert sample.body["domain"] == "grounding"
        assert sample.images == [(tmp_path / f"train2017/{number:012d}.jpg").read_bytes()]
        expected = reference_boxes(reference, number)
        shown = [block(sample.images[0], place) for place in range(sum(map(len, expected.values())))]
        assert sorted(shown) == sorted(box for boxes in expected.values() for box in boxes)
        assert check_boxes(sample, expected) > 0


@pytest.mark.parametrize("task", ["categories", "label", "count", "name"])
def test_each_task_is_answered_from_the_pixels(tmp_path: Path, task: str) -> None:
    samples, summary = do_import(COCO, boxes_of_two(tmp_path), tmp_path / "out", f"tasks={task}", "turns=6")
    person, dog = [block(samples[0].images[0], 0), block(samples[0].images[0], 1)], [block(samples[0].images[0], 2)]
    assert check_boxes(samples[0], {"person": person, "dog": dog})
    if task == "categories":  # one label is no list of categories
        assert len(samples) == 1 and summary.mark.unwanted == {"nothing to ask about": 1}
        assert all({e["label"] for e in answer} == {"person", "dog"} for _, answer, _ in answered(samples[0]))
    else:
        assert check_boxes(samples[1], {"cup": [block(samples[1].images[0], 0)]})


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("stated", ["stored", "displayed"])
def test_boxes_follow_a_turned_picture(tmp_path: Path, orientation: int, stated: str) -> None:
    """The annotations' width and height say which frame they mean; the answer is about the displayed one."""
    blocks = [(4.0, 6.0, 30.0, 20.0), (40.0, 30.0, 60.0, 44.0)]
    draw(tmp_path / "train2017/000000000001.jpg", (64, 48), blocks, orientation)
    size = (64, 48)
    if stated == "displayed":
        if orientation < 5:
            return  # both have one size: `coordinates` decides, below
        size = (48, 64)
        blocks = [_displayed(orientation, edges) for edges in blocks]
    annotations = [box_entry(1, 1, 1, blocks[0]), box_entry(2, 1, 18, blocks[1])]
    source = write(tmp_path / "annotations/instances_train2017.json", [image_entry(1, size)], annotations)
    (sample,), _ = do_import(COCO, source, tmp_path / "out", "turns=8", "tasks=categories,label,name")
    shown = {"person": [block(sample.images[0], 0)], "dog": [block(sample.images[0], 1)]}
    assert check_boxes(sample, shown) > 1


def _displayed(orientation: int, edges: tuple[float, ...]) -> tuple[float, float, float, float]:
    """Turned by numpy, as a picture of 64 x 48 would be."""
    mask = np.zeros((48, 64), bool)
    left, top, right, bottom = map(int, edges)
    mask[top:bottom, left:right] = True
    turned = {5: mask.T, 6: np.rot90(mask, -1), 7: np.rot90(mask, 2).T, 8: np.rot90(mask)}[orientation]
    rows, columns = np.nonzero(turned)
    return float(columns.min()), float(rows.min()), float(columns.max() + 1), float(rows.max() + 1)


def test_a_turn_that_keeps_the_size_is_the_users_to_say(tmp_path: Path) -> None:
    draw(tmp_path / "train2017/000000000001.jpg", (64, 48), [(4, 6, 30, 20)], orientation=3)
    found = {}
    for meant, edges in (("stored", (4, 6, 30, 20)), ("displayed", (34, 28, 60, 42))):
        source = write(tmp_path / "annotations/instances_train2017.json", [image_entry(1, (64, 48))],
                       [box_entry(1, 1, 1, edges)])  # fmt: skip
        (sample,), _ = do_import(COCO, source, tmp_path / meant, f"coordinates={meant}", "tasks=label", "turns=1")
        ((_, answer, _),) = answered(sample)
        (found[meant],) = entries(answer)
        assert near(found[meant]["bbox_2d"], block(sample.images[0], 0))
    assert found["stored"] == found["displayed"]


def crowded(folder: Path) -> Path:
    """A crowd of people beside one person, a dog and two cups; a cup of no height in the second picture."""
    size = (64, 48)
    draw(folder / "train2017/000000000001.jpg", size, [(2, 2, 10, 40), (14, 4, 60, 20), (30, 24, 50, 40)])
    draw(folder / "train2017/000000000002.jpg", size, [(0, 2, 12, 40), (20, 30, 30, 48)])
    annotations = [
        box_entry(1, 1, 1, (2, 2, 10, 40)),
        crowd_entry(2, 1, 1, (14, 4, 60, 20), size),
        box_entry(3, 1, 18, (30, 24, 50, 40)),
        box_entry(4, 2, 18, (-8, 2, 12, 40)),
        box_entry(5, 2, 47, (20, 30, 30, 55)),
        box_entry(6, 2, 47, (40, 30, 50, 30)),
    ]
    images = [image_entry(1, size), image_entry(2, size)]
    return write(folder / "annotations/instances_train2017.json", images, annotations)


def test_nothing_is_asked_that_needs_things_which_are_not_given(tmp_path: Path) -> None:
    source = crowded(tmp_path)
    assert Reference(str(source)).annToMask(Reference(str(source)).anns[2]).sum() == 46 * 16  # pycocotools reads it
    asked = []
    for turn in range(12):  # other keys, other questions
        text = json.loads(source.read_text())
        for entry in text["images"]:
            entry["id"] += 10 * turn
        for entry in text["annotations"]:
            entry["image_id"] += 10 * turn
        moved = tmp_path / f"annotations/instances_train2017_{turn}.json"
        moved.write_text(json.dumps(text))
        samples, _ = do_import(COCO, moved, tmp_path / f"out{turn}", f"images={tmp_path}/train2017", "turns=6")
        for sample, whole, torn in zip(samples, ("dog", "dog"), ("person", "cup"), strict=True):
            for question, answer, _ in answered(sample):
                asked.append(question)
                box = named_box(question)
                if box is not None:
                    assert answer in (whole, torn)
                    continue
                assert torn not in question
                assert all(entry["label"] == whole for entry in entries(answer) if isinstance(entry, dict))
        cut = block(samples[1].images[0], 0)
        assert cut[0] == 0 and check_boxes(samples[1], {"dog": [cut], "cup": [block(samples[1].images[0], 1)]})
    assert len(set(asked)) > 8


def test_a_crowd_can_be_a_label_of_its_own(tmp_path: Path) -> None:
    samples, _ = do_import(COCO, crowded(tmp_path), tmp_path / "out", "groups=label", "turns=8")
    found = [entry for _, answer, _ in answered(samples[0]) if not isinstance(answer, str) for entry in entries(answer)]
    groups = [entry["bbox_2d"] for entry in found if entry["label"] == "group of person"]
    assert groups and all(near(box, block(samples[0].images[0], 1)) for box in groups)
    assert all("group of" not in question for question, answer, count in answered(samples[0]) if count is not None)


def bad_images(folder: Path) -> Path:
    size = (64, 48)
    for number in (1, 4):
        draw(folder / f"train2017/{number:012d}.jpg", size, [(4, 4, 30, 30)])
    (folder / "train2017/000000000002.jpg").write_bytes(b"<html>404</html>")
    images = [image_entry(n, size) for n in (1, 2, 3)] + [image_entry(4, (100, 75)), image_entry(5, size, "../x.jpg")]
    images.append(image_entry(6, size))
    annotations = [box_entry(n, n, 1, (4, 4, 30, 30)) for n in (1, 2, 3, 4, 5)]
    draw(folder / "train2017/000000000006.jpg", size)
    return write(folder / "annotations/instances_train2017.json", images, annotations)


def test_bad_images_are_named_and_the_others_stay(tmp_path: Path) -> None:
    samples, summary = do_import(COCO, bad_images(tmp_path), tmp_path / "out")
    assert [sample.key for sample in samples] == ["000000000001"]
    why = left_out(summary)
    for number, words in ((2, "image cannot be read"), (3, "not there"), (4, "100 x 75"), (5, "not a name inside")):
        assert words in why[f"{number:012d}"], why
    assert summary.mark.left_out == 4 and summary.mark.unwanted == {"negatives": 1}


def test_empty_pictures_are_negatives_when_asked_for(tmp_path: Path) -> None:
    samples, summary = do_import(COCO, bad_images(tmp_path), tmp_path / "out", "negatives=true", "turns=4")
    empty = samples[-1]
    assert empty.key == "000000000006" and not summary.mark.unwanted
    answers = [answer for _, answer, _ in answered(empty)]
    assert answers and all(answer in ([], "0") for answer in answers)
    for question, answer, _ in answered(samples[0]):
        if answer in ([], "0"):
            assert "person" not in question


def test_captions(tmp_path: Path) -> None:
    source = boxes_of_two(tmp_path)
    images = json.loads(source.read_text())["images"]
    captions = [{"image_id": 391895, "id": n, "caption": f"A man with\n a dog, {n}."} for n in range(5)]
    captions.append({"image_id": 9, "id": 9, "caption": "A cup "})
    path = tmp_path / "annotations/captions_train2017.json"
    path.write_text(json.dumps({"info": {}, "images": images, "licenses": [], "annotations": captions}))
    reference = Reference(str(path))
    one, _ = do_import(COCO, path, tmp_path / "one")
    every, _ = do_import(COCO, path, tmp_path / "all", "captions=0", "form=conversation")
    assert [sample.key for sample in one] == ["000000391895_0", "000000000009_0"]
    assert [part.get("text") for part in one[1].parts] == [None, "A cup"]
    assert one[0].body["domain"] == "caption" and one[0].images == every[0].images
    told = [" ".join(entry["caption"].split()) for entry in reference.loadAnns(reference.getAnnIds())]
    assert [answer for sample in every for _, answer in sample.turns] == told


def test_keypoints_are_visible_points_of_pycocotools(tmp_path: Path) -> None:
    names, ids = ["nose", "left_eye", "right_wrist"], range(1, 9)
    person = {"supercategory": "person", "id": 1, "name": "person", "keypoints": names, "skeleton": [[1, 2]]}
    joints = [20, 10, 2, 25, 12, 1, 0, 0, 0]  # seen, hidden, not marked
    for number in ids:
        draw(tmp_path / f"val2017/{number:012d}.jpg", (64, 48), orientation=6)
    people = [box_entry(n, n, 1, (4, 4, 40, 40), keypoints=joints, num_keypoints=2) for n in ids]
    path = tmp_path / "annotations/person_keypoints_val2017.json"
    source = write(path, [image_entry(number, (64, 48)) for number in ids], people, [person])
    marked = Reference(str(source)).anns[1]["keypoints"]
    expected = {  # orientation 6: a quarter turn
        name.replace("_", " "): [(48 - marked[3 * n + 1]) * 1000 / 48, marked[3 * n] * 1000 / 64]
        for n, name in enumerate(names)
    }
    for words, shown in (([], {"nose"}), (["hidden=true"], {"nose", "left eye"})):
        samples, _ = do_import(COCO, source, tmp_path / f"out{len(words)}", *words)
        found = set()
        for sample in samples:
            ((question, answer, _),) = answered(sample)
            assert near(named_box(question) or [], [8000 / 48, 4000 / 64, 44000 / 48, 40000 / 64])
            for point in entries(answer):
                assert near(point["point_2d"], expected[point["label"]])
                found.add(point["label"])
        assert len(samples) == 8 and found == shown


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tree: tree.pop("annotations"), "no list `annotations`"),
        (lambda tree: tree["annotations"][1].pop("bbox"), "annotations[1].bbox is missing"),
        (lambda tree: tree["annotations"][0].update(bbox=[1, 2, "3", 4]), "annotations[0].bbox"),
        (lambda tree: tree["annotations"][0].update(category_id=77), "category_id is 77"),
        (lambda tree: tree["images"][1].pop("file_name"), "images[1].file_name is missing"),
        (lambda tree: tree["images"][0].update(width="64"), "images[0].width is '64'"),
        (lambda tree: tree["categories"][0].pop("name"), "categories[0].name is missing"),
    ],
)
def test_another_format_is_one_line_with_file_and_field(tmp_path: Path, change, message: str) -> None:
    source = boxes_of_two(tmp_path)
    tree = json.loads(source.read_text())
    change(tree)
    source.write_text(json.dumps(tree))
    with pytest.raises(UserError) as raised:
        do_import(COCO, source, tmp_path / "out")
    (problem,) = raised.value.problems
    assert problem.startswith(str(source)) and message in problem and "\n" not in problem


def test_what_is_no_json_and_a_folder_are_said(tmp_path: Path) -> None:
    source = boxes_of_two(tmp_path)
    with pytest.raises(UserError, match="instances_train2017.json"):
        do_import(COCO, tmp_path, tmp_path / "out")
    source.write_text(source.read_text()[:-300])
    with pytest.raises(UserError, match="not valid JSON"):
        do_import(COCO, source, tmp_path / "out2")
    with pytest.raises(UserError, match="give their folder as images=DIR"):
        do_import(COCO, boxes_of_two(tmp_path), tmp_path / "out3", "images=/nowhere")


def test_the_same_source_makes_the_same_bytes(tmp_path: Path) -> None:
    source = boxes_of_two(tmp_path)
    for out in ("one", "two"):
        do_import(COCO, source, tmp_path / out)
    assert (tmp_path / "one/train/00000.tar").read_bytes() == (tmp_path / "two/train/00000.tar").read_bytes()


def test_it_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = boxes_of_two(tmp_path)
    tree = json.loads(source.read_text())
    for entry in tree["annotations"]:
        entry |= {"keypoints": [5, 5, 2], "num_keypoints": 1, "caption": "A picture."}
    for category in tree["categories"]:
        category["keypoints"] = ["nose"]
    source.write_text(json.dumps(tree))
    trains(COCO, source, tmp_path, capsys, "kind=boxes", "kind=captions", "kind=keypoints")
