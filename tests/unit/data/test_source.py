"""A source plans with lengths it has not read: they must be what comes out, always."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_qwen3vl.batch import IGNORE
from megatron_qwen3vl.data.inspect import as_text, holdings, open_path
from megatron_qwen3vl.data.shards import write_shard
from megatron_qwen3vl.data.vision import VisionLimits, decode, image_grid, make_patches
from megatron_qwen3vl.errors import UserError
from tests.unit.data.shard_helpers import (
    LIMITS,
    VISION,
    build_indexes,
    document,
    image_part,
    model,
    picture,
    source,
    tokenizer,
    video_part,
)

T = tokenizer()


def fill(folder: Path, samples: list[tuple[str, dict[str, bytes]]], shard: str = "0.tar") -> Path:
    (folder / "data").mkdir(exist_ok=True)
    write_shard(folder / "data" / shard, samples)
    return folder


@st.composite
def samples(draw: st.DrawFn) -> dict[str, bytes]:
    parts, files = [], {}

    def media() -> str:
        name = f"{len(files)}.png"
        files[name] = picture(*size)
        return name

    for kind in draw(st.lists(st.sampled_from(["text", "image", "video"]), min_size=1, max_size=4)):
        size = draw(st.integers(1, 150)), draw(st.integers(1, 150))
        if kind == "text":
            parts.append(draw(st.text(min_size=1, max_size=30)))
        elif kind == "image":
            parts.append(image_part(media()))
        else:
            frames = [media() for _ in range(draw(st.integers(1, 5)))]
            parts.append(video_part(*frames, fps=draw(st.floats(0.001, 60))))
    return {"json": document(*parts), **files}


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(samples(), min_size=1, max_size=3), st.sampled_from(["seconds", "clock", "mixed"]), st.integers(10, 15))
def test_planned_is_rendered(tmp_path: Path, files: list[dict[str, bytes]], style: str, high: int) -> None:
    fill(tmp_path, [(f"{number}", sample) for number, sample in enumerate(files)])
    found = source(tmp_path, limits=VisionLimits(1024, 2**high, 1024, 2**high), timestamps=style)
    for i in range(len(found)):
        plain, whole = found.read(i, pixels=False), found.read(i, pixels=True)
        assert whole.failure is None and plain.patches is None
        assert found.lengths[i] == len(whole.input_ids) == len(whole.labels) == whole.positions.shape[1]
        assert found.patches[i] == len(whole.patches) == whole.grids.prod(axis=1).sum() == 4 * len(whole.visual_index)
        placeholders = np.flatnonzero(np.isin(whole.input_ids, [T.image_pad, T.video_pad]))
        np.testing.assert_array_equal(placeholders, whole.visual_index)
        for name in ("input_ids", "labels", "positions", "visual_index", "grids"):
            np.testing.assert_array_equal(getattr(plain, name), getattr(whole, name))


def test_pixels_in_reading_order(tmp_path: Path) -> None:
    first, second = picture(40, 70, seed=1), picture(64, 64, seed=2)
    fill(
        tmp_path, [("k", {"json": document(image_part("b.png"), image_part("a.png")), "a.png": second, "b.png": first})]
    )
    got = source(tmp_path).read(0, pixels=True)
    images = [decode(first), decode(second)]
    grids = [image_grid(*image.shape[:2], LIMITS, VISION) for image in images]
    expected = np.concatenate([make_patches([i], g, VISION) for i, g in zip(images, grids, strict=True)])
    np.testing.assert_array_equal(got.patches, expected)
    assert got.grids.tolist() == [list(grid) for grid in grids]


def test_keys_domains_and_order(tmp_path: Path) -> None:
    (tmp_path / "data/p").mkdir(parents=True)
    fill(tmp_path, [("x/0", {"json": document("a", domain="ocr")}), ("x/1", {"txt": b"b"})], "p/0.tar")
    fill(tmp_path, [("0", {"txt": b"c"}), ("1", {"json": b"[]"})], "q.tar")
    found = source(tmp_path)
    assert [found.key(i) for i in range(len(found))] == ["src/p/0/x/0", "src/p/0/x/1", "src/q/0", "src/q/1"]
    assert [found.domain(i) for i in range(3)] == ["ocr", "src", "src"] and found.domains == {"ocr", "src"}
    assert found.lengths.dtype == np.int32 and (found.lengths > 0).tolist() == [True, True, True, False]
    assert [bool(found.reason(i)) for i in range(4)] == [False, False, False, True]
    with pytest.raises(IndexError):
        found.key(4)


def test_sample_without_a_place_comes_back_failed(tmp_path: Path) -> None:
    thin = {"json": document("x", image_part("0.png")), "0.png": picture(1, 300)}
    fill(tmp_path, [("0", {"json": b"{}"}), ("1", thin), ("2", {"txt": b"good"})])
    found = source(tmp_path)
    assert found.lengths.tolist()[:2] == [0, 0] and found.patches.tolist() == [0, 0, 0]
    assert "missing member" in found.reason(0) and "200 times" in found.reason(1)
    for i in range(2):
        assert found.read(i, pixels=True).failure == found.reason(i)
    assert found.read(2, pixels=True).failure is None


def test_media_that_break_on_decoding_keep_their_place(tmp_path: Path) -> None:
    broken = picture(64, 64)
    fill(tmp_path, [("0", {"json": document("words", image_part("0.png")), "0.png": broken[: len(broken) // 2]})])
    found = source(tmp_path)
    bad = found.read(0, pixels=True)
    assert "cannot be decoded" in bad.failure and bad.key == "src/0/0"
    assert len(bad.input_ids) == found.lengths[0] > 4
    assert set(bad.labels.tolist()) == {IGNORE} and bad.num_labels == 0
    assert (
        bad.visual_index.shape == (0,) and bad.grids.shape == (0, 3) and bad.patches.shape == (0, VISION.patch_values)
    )
    assert bad.positions.shape == (3, len(bad.input_ids))


def test_shard_exchanged_after_opening_never_changes_the_plan(tmp_path: Path) -> None:
    before = {"json": document("abc", image_part("0.png")), "0.png": picture(64, 64)}
    fill(tmp_path, [("0", before), ("1", before)])
    found = source(tmp_path)
    good = found.read(0, pixels=True)
    fill(
        tmp_path,
        [("0", before | {"json": document("xyz", image_part("0.png")), "0.png": picture(64, 96)}), ("1", before)],
    )
    for i in range(2):
        bad = found.read(i, pixels=True)
        assert len(bad.input_ids) == len(good.input_ids)


def test_travels_to_other_processes_as_paths(tmp_path: Path) -> None:
    many = [(f"{number:04d}", {"txt": b"some words"}) for number in range(2000)]
    fill(tmp_path, many)
    build_indexes(tmp_path / "data", T)
    found = source(tmp_path)
    packed = pickle.dumps(found)
    assert len(packed) < len(pickle.dumps(T)) + 2000 * 8 + 4000
    copy = pickle.loads(packed)
    assert copy.key(1999) == found.key(1999)
    np.testing.assert_array_equal(copy.read(7, pixels=True).input_ids, found.read(7, pixels=True).input_ids)


def test_plans_without_opening_media(tmp_path: Path) -> None:
    fill(tmp_path, [("0", {"json": document(image_part("0.png")), "0.png": picture(64, 64)})])
    build_indexes(tmp_path / "data", T)
    shard = tmp_path / "data" / "0.tar"
    expected = source(tmp_path).lengths.tolist()
    times = shard.stat().st_atime_ns, shard.stat().st_mtime_ns
    size = shard.stat().st_size
    shard.write_bytes(bytes(size))  # nothing of it is left
    os.utime(shard, ns=times)
    assert source(tmp_path).lengths.tolist() == expected


def test_cut_shard_is_reported_and_the_rest_used(tmp_path: Path) -> None:
    fill(tmp_path, [(f"{number}", {"txt": b"words"}) for number in range(4)])
    os.truncate(tmp_path / "data/0.tar", 2 * 1024 + 512 + 2)
    found = source(tmp_path)
    assert len(found) == 2 and len(found.damage) == 1
    assert found.read(1, pixels=True).failure is None


def test_all_problems_of_a_source_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="source src: .*nowhere.*"):
        source(tmp_path, shards="nowhere.tar")
    for name in ("0.tar", "1.tar"):
        fill(tmp_path, [("0", {"txt": b"words"})], name)
    build_indexes(tmp_path / "data", T)
    for name in ("0.tar", "1.tar"):
        fill(tmp_path, [("0", {"txt": b"other words"})], name)
    with pytest.raises(UserError) as error:
        source(tmp_path)
    assert len(error.value.problems) == 2


def test_inspect_page(tmp_path: Path) -> None:
    pair = {"json": document("abc", image_part("0.png"), domain="ocr"), "0.png": picture(64, 64)}
    fill(tmp_path, [("0", pair), ("1", {"txt": b"words"}), ("2", {"json": b"{}"})])
    found = source(tmp_path)
    (tmp_path / "mix.yaml").write_text("sources: [{name: first, shards: data, weight: 1}]")
    for path in (tmp_path / "data", tmp_path / "mix.yaml"):
        page = as_text([holdings(held, VISION) for held in open_path(path, T, LIMITS, model())[0]], [])
        flat = " ".join(page.split())
        assert "samples 2" in flat and f"tokens {found.lengths.sum()}" in flat and "visual tokens 4" in flat
        assert "ocr 1" in flat and "cannot be used 1" in flat and "missing member 'content' or 'messages'" in flat


def test_a_shard_that_is_gone_stops_the_run(tmp_path: Path) -> None:
    """The same samples must come after a restart: trouble of the machine is not a bad sample."""
    fill(tmp_path, [("0", {"txt": b"words"})])
    found = source(tmp_path)
    (tmp_path / "data/0.tar").unlink()
    with pytest.raises(OSError, match="0.tar"):
        found.read(0, pixels=False)
