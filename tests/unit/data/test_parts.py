"""Documents longer than the sequence: nothing lost, nothing doubled, no image or video cut, each part a sample."""

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_qwen3vl.batch import IGNORE, Sample
from megatron_qwen3vl.config.schema import SourceConfig
from megatron_qwen3vl.data.lanes import Lane, Mixture
from megatron_qwen3vl.data.parts import divide
from megatron_qwen3vl.data.shards import write_shard
from megatron_qwen3vl.data.source import Source, open_source
from megatron_qwen3vl.data.workers import read_planned
from tests.unit.data.shard_helpers import (
    LIMITS,
    build_indexes,
    document,
    image_part,
    model,
    picture,
    tokenizer,
    video_part,
)

T = tokenizer()
WORDS = "One sentence stands behind another. " * 4


def opened(folder: Path, length: int | None, too_long: str = "split", cache: Path | None = None) -> Source:
    config = SourceConfig("src", "data", 1.0, too_long=too_long)
    return open_source(config, folder, T, LIMITS, model(), cache, length)


def fill(folder: Path, *shards: list[dict[str, bytes]]) -> None:
    (folder / "data").mkdir(exist_ok=True)
    for number, samples in enumerate(shards):
        write_shard(folder / f"data/{number}.tar", [(f"{key:03d}", sample) for key, sample in enumerate(samples)])


def transformers_positions(sample: Sample) -> np.ndarray:
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel

    types = [1 if i == T.image_pad else 2 if i == T.video_pad else 0 for i in sample.input_ids.tolist()]
    order = [types[first] for first in sample.visual_index[np.cumsum(sizes(sample)) - sizes(sample)].tolist()]
    placed = list(zip(sample.grids.tolist(), order, strict=True))
    grids = {kind: [grid for grid, of in placed if of == kind] for kind in (1, 2)}
    stub = SimpleNamespace(config=SimpleNamespace(vision_config=SimpleNamespace(spatial_merge_size=2)))
    stub.get_vision_position_ids = partial(Qwen3VLModel.get_vision_position_ids, stub)
    images, videos = (torch.tensor(grids[kind]) if grids[kind] else None for kind in (1, 2))
    ids = torch.zeros(1, len(types), dtype=torch.long)
    positions, _ = Qwen3VLModel.get_rope_index(stub, ids, torch.tensor([types]), images, videos)
    return positions[:, 0].numpy()


def sizes(sample: Sample) -> np.ndarray:
    """Merged features of each image and temporal group."""
    return sample.grids[:, 1] * sample.grids[:, 2] // 4


@st.composite
def documents(draw: st.DrawFn) -> dict[str, bytes]:
    parts: list[object] = []
    files: dict[str, bytes] = {}
    for kind in draw(st.lists(st.sampled_from(["text", "text", "image", "video"]), min_size=1, max_size=7)):
        size = draw(st.sampled_from([(33, 40), (64, 64), (90, 33)]))
        if kind == "text":
            parts.append(draw(st.sampled_from(["x", "two words", WORDS, ""])))
            continue
        names = [f"{len(files) + n}.png" for n in range(1 if kind == "image" else draw(st.integers(1, 5)))]
        files |= {name: picture(*size, seed=place) for place, name in enumerate(names, len(files))}
        parts.append(image_part(names[0]) if kind == "image" else video_part(*names))
    return {"json": document("begins", *parts), **files}


def check_parts(whole: Sample, parts: list[Sample], limit: int) -> None:
    assert [part.failure for part in parts] == [None] * len(parts)
    for name, axis in (("input_ids", 0), ("grids", 0), ("patches", 0)):
        joined = np.concatenate([getattr(part, name) for part in parts], axis)
        np.testing.assert_array_equal(joined, getattr(whole, name), err_msg=name)
    bounds = np.cumsum([0, *(len(part.input_ids) for part in parts)])
    for part, start, stop in zip(parts, bounds[:-1], bounds[1:], strict=True):
        assert 0 < stop - start <= limit
        # nothing predicts the token behind the part: its first token is predicted by nobody
        assert part.labels.tolist() == [*whole.labels[start : stop - 1].tolist(), IGNORE]
        placeholders = np.flatnonzero(np.isin(part.input_ids, (T.image_pad, T.video_pad)))
        assert part.visual_index.tolist() == placeholders.tolist()
        assert sizes(part).sum() == len(placeholders) == len(part.patches) // 4
        markers = [np.count_nonzero(part.input_ids == marker) for marker in (T.vision_start, T.vision_end)]
        assert markers == [len(part.grids)] * 2, "a span was cut"
        np.testing.assert_array_equal(part.positions, transformers_positions(part))


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(documents(), min_size=1, max_size=4), st.integers(24, 120), st.booleans())
def test_parts_are_the_document(tmp_path: Path, samples: list[dict[str, bytes]], limit: int, kept: bool) -> None:
    half = len(samples) // 2
    fill(tmp_path, samples[:half], samples[half:])
    whole, parts = opened(tmp_path, None), opened(tmp_path, limit, cache=tmp_path / "cache" if kept else None)
    row = 0
    for i in range(len(whole)):
        expected, key = whole.read(i, pixels=True), whole.key(i)
        found = []
        while row < len(parts) and parts.key(row).partition("#")[0] == key:
            found.append(parts.read(row, pixels=True))
            assert len(found[-1].input_ids) == parts.lengths[row] and len(found[-1].patches) == parts.patches[row]
            row += 1
        if len(found) == 1:  # fits, or holds a video that does not
            assert found[0].key == key and len(found[0].input_ids) == len(expected.input_ids)
            assert len(expected.input_ids) <= limit or "not divided" in parts.reason(row - 1)
        else:
            assert [sample.key for sample in found] == [f"{key}#{n + 1}" for n in range(len(found))]
            check_parts(expected, found, limit)
    assert row == len(parts)


@settings(max_examples=150, deadline=None)
@given(st.data(), st.integers(1, 40))
def test_fewest_parts_and_no_span_cut(data: st.DataObject, limit: int) -> None:
    spans, ends, length = [], [], 0
    for text, span in data.draw(st.lists(st.tuples(st.integers(0, 30), st.integers(1, limit)), max_size=12)):
        length += text
        ends.append(length)
        if data.draw(st.booleans()):
            spans.append((length, length + span))
            length += span
    length += 1
    bounds = divide(length, spans, sorted(set(ends)), limit)
    assert bounds[0] == 0 and bounds[-1] == length
    assert all(0 < after - before <= limit for before, after in zip(bounds[:-1], bounds[1:], strict=True))
    assert not any(begin < cut < end for begin, end in spans for cut in bounds)
    fewest, start = 0, 0
    while start < length:  # always as far as it goes
        stop = min(start + limit, length)
        start = min([stop, *(begin for begin, end in spans if begin < stop < end)])
        fewest += 1
    assert len(bounds) - 1 == fewest


def test_cuts_at_the_end_of_a_text_near_the_middle() -> None:
    assert divide(1000, [], [], 300) == [0, 250, 500, 750, 1000]
    assert divide(1000, [], [20, 260, 700, 990], 300) == [0, 260, 506, 700, 1000]
    assert divide(100, [(40, 70)], [], 80) == [0, 40, 100]
    assert divide(100, [(10, 91)], [], 80) is None
    assert divide(8, [], [], 8) == [0, 8]


def test_text_parts_that_meet_are_where_it_is_divided(tmp_path: Path) -> None:
    picture_files = {"0.png": picture(64, 64), "1.png": picture(64, 64)}
    texts = [WORDS[:70], image_part("0.png"), WORDS[:40], WORDS[:90], image_part("1.png"), WORDS[:30]]
    fill(tmp_path, [{"json": document(*texts), **picture_files}])
    counts = [len(T.encode(part)) if isinstance(part, str) else 6 for part in texts]
    limit = sum(counts) // 2 + 12
    found = opened(tmp_path, limit)
    assert found.lengths.tolist() == [sum(counts[:3]), sum(counts[3:]) + 1]
    assert found.read(1, pixels=False).input_ids[: counts[3]].tolist() == T.encode(WORDS[:90])
    assert found.num_split == (1, 2)


def test_what_is_not_divided_is_named(tmp_path: Path) -> None:
    chat = {"messages": [{"role": "user", "content": WORDS}, {"role": "assistant", "content": WORDS}]}
    frames = {f"{n}.png": picture(64, 64) for n in range(20)}
    video = {"json": document("x", video_part(*frames)), **frames}
    fill(tmp_path, [{"json": json.dumps(chat).encode()}, video, {"txt": (WORDS * 2).encode()}, {"txt": b"short"}])
    expected = {
        "split": ["src/0/000: a conversation is not divided", "src/0/001: an image or video in it"],
        "skip": ["src/0/000: ", "src/0/001: ", "src/0/002: "],
    }
    for too_long, named in expected.items():
        found = opened(tmp_path, 64, too_long)
        mixture = Mixture([found], [1.0], 0, "s1", 1, 64)
        assert mixture.num_left_out == [len(named)]
        lane = Lane(0, mixture, 64, None)
        left_out = sorted((out.key, out.reason) for _ in range(8) for out in lane.next_pack()[1])
        assert [key for key, _ in left_out] == [name.partition(": ")[0] for name in named]
        for (_, reason), name in zip(left_out, named, strict=True):
            assert "more than the sequence_length of 64" in reason and name.partition(": ")[2] in reason


def test_a_part_reads_its_own_media_and_fails_alone(tmp_path: Path) -> None:
    good, broken = picture(64, 64), picture(64, 64, seed=1)
    files = {"0.png": good, "1.png": broken[: len(broken) // 2]}
    fill(tmp_path, [{"json": document(WORDS, image_part("0.png"), WORDS, image_part("1.png"), WORDS), **files}])
    limit = len(T.encode(WORDS)) + 20
    found = opened(tmp_path, limit)
    parts = [found.read(i, pixels=True) for i in range(len(found))]
    assert [part.failure is None for part in parts].count(False) == 1
    (bad,) = [part for part in parts if part.failure]
    assert "cannot be decoded" in bad.failure and bad.num_labels == 0 and not len(bad.visual_index)
    assert len(bad.input_ids) == found.lengths[int(bad.key.partition("#")[2]) - 1]
    assert sum(len(part.patches) for part in parts) == 16, "the other picture was seen"
    without = [found.read(i, pixels=False) for i in range(len(found))]
    assert [part.failure for part in without] == [None] * len(parts)


def test_a_document_that_changed_fails_in_every_part(tmp_path: Path) -> None:
    fill(tmp_path, [{"txt": (WORDS * 2).encode()}])
    found = opened(tmp_path, 64)
    lengths = found.lengths.tolist()
    fill(tmp_path, [{"txt": (WORDS + WORDS.upper()).encode()}])
    for i, length in enumerate(lengths):
        sample = read_planned(found, i, length, True, 0)
        assert len(sample.input_ids) == length and "data index" in (sample.failure or "")


def test_the_stage_decides_and_evaluation_reads_whole(tmp_path: Path) -> None:
    fill(tmp_path, [{"txt": (WORDS * 3).encode()}, {"txt": b"short"}])
    build_indexes(tmp_path / "data", T)
    whole = opened(tmp_path, None)
    assert len(whole) == 2 and "#" not in whole.key(0) and whole.num_split == (0, 0)
    for length in (40, 64, 128):
        found = opened(tmp_path, length, cache=tmp_path / "run")
        assert len(found) == -(-int(whole.lengths[0]) // length) + 1 and found.lengths.max() <= length
        assert found.key(len(found) - 1) == whole.key(1)
    assert len(list((tmp_path / "run").glob("*.catalogue"))) == 3
