"""The file beside a shard: complete, recognised as stale, never written where nobody asked."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from megatron_qwen3vl.data.index import MAGIC, index_path, read_index
from megatron_qwen3vl.data.indexing import get_index, index_shards
from megatron_qwen3vl.data.places import LocalPlace
from megatron_qwen3vl.data.shards import Shard, find_shards, scan, write_shard
from megatron_qwen3vl.data.tokenizer import BUILT_IN, Tokenizer
from megatron_qwen3vl.errors import UserError
from tests.unit.data.shard_helpers import build_indexes, document, image_part, picture, tokenizer, video_part

T = tokenizer()
OTHER = Tokenizer((BUILT_IN / "tokenizer.json").read_text("utf-8") + "\n")  # counts alike, but is another file
SAMPLES = [
    ("a/0", {"json": document("wörds", image_part("0.png"), domain="ocr"), "0.png": picture(20, 30)}),
    (
        "a/1",
        {
            "json": document(video_part("f0.png", "f1.png", "f2.png", fps=4)),
            **{f"f{i}.png": picture(8, 9) for i in range(3)},
        },
    ),
    ("a/2", {"txt": b"only words"}),
    ("a/3", {"json": b"{"}),
    ("a/4", {"json": document("x", image_part("0.png")), "0.png": b"no image"}),
    ("a/5", {"json": document(video_part("0.png", "1.png")), "0.png": picture(8, 9), "1.png": picture(9, 8)}),
]


@pytest.fixture
def shard(tmp_path: Path) -> Shard:
    write_shard(tmp_path / "s.tar", SAMPLES)
    return Shard(LocalPlace(tmp_path / "s.tar"), "s")


def test_holds_what_the_shard_holds(shard: Shard) -> None:
    (index,) = build_indexes(shard.place.path, T)
    assert [index.string("key", i) for i in range(len(index))] == [key for key, _ in SAMPLES]
    assert [index.members(i) for i in range(len(index))] == [list(group.members) for group in scan(shard).groups]
    words, only = len(T.encode("wörds")), len(T.encode("only words"))
    assert index.counts("text_tokens", T).tolist() == [words + 1, 1, only + 1, 0, 0, 0]
    assert index.counts("text_before", T).tolist() == [words, 0] and not len(index.counts("text_breaks", T))
    assert index.arrays["visual_sizes"].reshape(-1, 2).tolist() == [[20, 30], [8, 9]]
    assert index.arrays["visual_frames"].tolist() == [0, 3] and index.arrays["visual_fps"].tolist() == [0, 4]
    assert [index.domain(i) for i in range(3)] == ["ocr", None, None]
    assert [index.reason(i) for i in range(3)] == [None] * 3
    for number, reason in ((3, "not JSON"), (4, "not a JPEG"), (5, "differ in size")):
        assert reason in index.reason(number)


def test_file_memory_and_pickle_agree(shard: Shard, tmp_path: Path) -> None:
    memory = get_index(shard, T, cache=None)
    assert memory.path is None and sorted(p.name for p in tmp_path.iterdir()) == ["s.tar"]
    cached = get_index(shard, T, tmp_path / "cache")
    assert cached.path.parent == tmp_path / "cache" and not index_path(shard).exists()
    built = build_indexes(shard.place.path, T)[0]
    for index in (
        cached,
        built,
        read_index(index_path(shard)),
        pickle.loads(pickle.dumps(built)),
        pickle.loads(pickle.dumps(memory)),
    ):
        assert index.arrays.keys() == memory.arrays.keys()
        for name, array in memory.arrays.items():
            np.testing.assert_array_equal(index.arrays[name], array, err_msg=name)
    assert len(pickle.dumps(built)) < 300


def test_cache_is_used_and_refreshed(shard: Shard, tmp_path: Path) -> None:
    first = get_index(shard, T, tmp_path / "cache").path
    made = first.stat().st_mtime_ns
    assert get_index(shard, T, tmp_path / "cache").path.stat().st_mtime_ns == made
    write_shard(shard.place.path, SAMPLES[:2])
    assert len(get_index(shard, T, tmp_path / "cache")) == 2
    first.write_bytes(b"junk")
    assert len(get_index(shard, T, tmp_path / "cache")) == 2


def test_changed_shard_is_refused_a_copied_one_is_not(shard: Shard) -> None:
    build_indexes(shard.place.path, T)
    os.utime(shard.place.path, (1, 1))
    assert len(get_index(shard, T, None)) == len(SAMPLES)
    write_shard(shard.place.path, SAMPLES[:-1])
    with pytest.raises(UserError, match="data index .* again"):
        get_index(shard, T, None)
    build_indexes(shard.place.path, T)
    assert len(get_index(shard, T, None)) == len(SAMPLES) - 1


def test_megatron_energons_index_of_the_same_name_is_no_index_and_stays(shard: Shard, tmp_path: Path) -> None:
    path = shard.place.path
    keys = [group.members[0].offset - 512 for group in scan(shard).groups]
    theirs = np.array([*keys, path.stat().st_size], "<u8").tobytes()  # what its prepare writes
    assert theirs[:8] == bytes(8)
    index_path(shard).write_bytes(theirs)
    assert len(get_index(shard, T, None)) == len(SAMPLES)
    (refused,) = index_shards([shard], T, None, 1, lambda _: None)
    assert "--to FOLDER" in refused.problem and index_path(shard).read_bytes() == theirs
    (made,) = index_shards([shard], T, tmp_path / "elsewhere", 1, lambda _: None)
    assert made.problem is None and get_index(shard, T, tmp_path / "elsewhere").path.parent == tmp_path / "elsewhere"


def test_counts_of_several_tokenizers_live_together(shard: Shard, tmp_path: Path) -> None:
    build_indexes(shard.place.path, T)
    assert get_index(shard, OTHER, None).path is None, "counted now, in memory"
    build_indexes(shard.place.path, OTHER)
    for tokenizer_ in (T, OTHER):
        assert get_index(shard, tokenizer_, None).path == index_path(shard)
    write_shard(shard.place.path, SAMPLES[:3])
    (index,) = build_indexes(shard.place.path, OTHER)
    assert not index.has_counts(T), "counts of another state of the shard are gone"


def test_plain_folder_keeps_its_index_inside(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("words")
    seen: list[int] = []
    (result,) = index_shards(find_shards(str(tmp_path), Path.cwd()), T, None, 1, seen.append)
    assert seen == [1] and (result.name, result.made, result.samples) == (".", True, 1)
    assert (tmp_path / ".idx").is_file()
    (shard,) = find_shards(str(tmp_path), Path("/"))
    assert len(get_index(shard, T, None)) == 1
    (tmp_path / "y.txt").write_text("more")
    with pytest.raises(UserError, match="again"):
        get_index(shard, T, None)


@pytest.mark.parametrize("damage", ["cut", "magic", "header", "empty", "header length"])
def test_damaged_index_is_named(shard: Shard, damage: str) -> None:
    build_indexes(shard.place.path, T)
    path = index_path(shard)
    data = path.read_bytes()
    damaged = {
        "cut": data[:-200],
        "magic": b"PK" + data[2:],
        "header": data[:16] + b"x" + data[17:],
        "empty": b"",
        "header length": MAGIC + b"\xff" * 8 + data[16:],
    }
    path.write_bytes(damaged[damage])
    with pytest.raises(UserError, match="run `data index` again"):
        get_index(shard, T, None)


def test_a_file_twice_in_a_sample_is_named(tmp_path: Path) -> None:
    import io
    import tarfile

    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for _ in range(2):
            info = tarfile.TarInfo("0.txt")
            info.size = 1
            tar.addfile(info, io.BytesIO(b"x"))
    assert "twice" in get_index(Shard(LocalPlace(tmp_path / "s.tar"), "s"), T, None).reason(0)
