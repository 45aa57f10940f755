"""The catalogue of a source: what indexes say, opened without them; never a stale one."""

import pickle
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_qwen3vl.config.schema import SourceConfig
from megatron_qwen3vl.data.catalogue import Catalogue, Measured, _Growing, read_catalogue
from megatron_qwen3vl.data.indexing import Indexed, index_shards
from megatron_qwen3vl.data.lengths import ShardRows
from megatron_qwen3vl.data.processes import ProcessDied, map_in_order
from megatron_qwen3vl.data.shards import find_shards, write_shard
from megatron_qwen3vl.data.source import Source, open_source
from megatron_qwen3vl.data.survey import Survey, survey_of
from megatron_qwen3vl.errors import UserError
from tests.unit.data.dying import square_or_die
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
FRAMES = {f"{n}.png": picture(40, 64, seed=n) for n in range(6)}


def fill(folder: Path, *shards: Sequence[str]) -> None:
    """Shards of documents, each with a picture and frames behind its text."""
    (folder / "data").mkdir(exist_ok=True)
    for number, texts in enumerate(shards):
        samples = [
            (f"{n:03d}", {"json": document(text, image_part("0.png"), video_part(*FRAMES), domain=text[:3]), **FRAMES})
            for n, text in enumerate(texts)
        ]
        write_shard(folder / f"data/{number}.tar", samples)


def opened(folder: Path, cache: bool = True, length: int | None = 100, max_pixels: int = 0, **settings) -> Source:
    config = SourceConfig("src", "data", 1.0, max_pixels=max_pixels or None, **settings)
    return open_source(config, folder, T, LIMITS, model(), folder / "run" if cache else None, length)


def catalogues(folder: Path) -> list[Path]:
    return sorted((folder / "run").glob("*.catalogue"))


def same(one: Source, other: Source) -> None:
    assert one.lengths.tolist() == other.lengths.tolist() and one.patches.tolist() == other.patches.tolist()
    assert (one.domains, one.damage, one.num_split) == (other.domains, other.damage, other.num_split)
    for length in (60, 100, 300):
        assert one.survey(length) == other.survey(length) == survey_of(one.lengths, length)
    assert [one.key(i) for i in range(len(one))] == [other.key(i) for i in range(len(other))]
    assert [one.reason(i) for i in range(len(one))] == [other.reason(i) for i in range(len(other))]


def test_says_what_the_indexes_say_and_is_made_once(tmp_path: Path) -> None:
    fill(tmp_path, ["abc", "words " * 200], ["abd " * 40])
    build_indexes(tmp_path / "data", T)
    made = opened(tmp_path)
    same(made, opened(tmp_path, cache=False))
    (path,) = catalogues(tmp_path)
    times = path.stat().st_mtime_ns
    found = opened(tmp_path)
    same(found, made)
    assert path.stat().st_mtime_ns == times and catalogues(tmp_path) == [path]
    assert len(pickle.dumps(found)) < len(pickle.dumps(T)) + 4000
    same(pickle.loads(pickle.dumps(found)), made)
    assert not [name for name in path.parent.iterdir() if ".catalogue." in name.name and name.suffix != ".lock"]


def test_whatever_lengths_follow_from_has_a_catalogue_of_its_own(tmp_path: Path) -> None:
    fill(tmp_path, ["abc", "words " * 200], ["abd " * 40])
    build_indexes(tmp_path / "data", T)
    ways = [
        {},
        {"length": 300},
        {"length": None},
        {"too_long": "skip"},
        {"max_pixels": 2048},
        {"timestamps": "clock"},
        {"timestamps": "seconds"},
        {"fps": 1.0},
        {"max_frames": 4},
    ]
    for number, way in enumerate(ways, 1):
        same(opened(tmp_path, **way), opened(tmp_path, cache=False, **way))
        assert len(catalogues(tmp_path)) == number, way


def test_a_changed_shard_never_has_the_old_lengths(tmp_path: Path) -> None:
    fill(tmp_path, ["abc"], ["abd"])  # no index beside: the run makes its own
    assert opened(tmp_path).lengths.tolist() == [opened(tmp_path).lengths[0]] * 2
    before = opened(tmp_path)
    fill(tmp_path, ["abc"], ["abcdefg hijk " * 3])
    after = opened(tmp_path)
    assert after.lengths[0] == before.lengths[0] and after.lengths[1] > before.lengths[1]
    same(after, opened(tmp_path, cache=False))
    with pytest.raises(UserError, match="start again"):
        before.read(1, pixels=False)
    assert after.read(1, pixels=False).failure is None
    build_indexes(tmp_path / "data", T)
    fill(tmp_path, ["abc"], ["other"])
    with pytest.raises(UserError, match="has changed since .* again .*, or restore the shard"):
        opened(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "junk", "empty", "tail"])
def test_a_damaged_one_is_made_again(tmp_path: Path, damage: str) -> None:
    fill(tmp_path, ["abc", "abd"])
    whole = opened(tmp_path, cache=False)
    opened(tmp_path)
    (path,) = catalogues(tmp_path)
    data = path.read_bytes()
    path.write_bytes({"cut": data[:-40], "junk": b"x" * 300, "empty": b"", "tail": data + b"x" * 8}[damage])
    same(opened(tmp_path), whole)
    assert path.read_bytes() == data
    other = path.with_name("other.catalogue")
    other.write_bytes(data)
    with pytest.raises(ValueError, match="something else"):
        read_catalogue(other, "0" * 64)


def test_many_at_once_make_one(tmp_path: Path) -> None:
    fill(tmp_path, ["abc", "abd"])
    found: list[Source] = []
    threads = [threading.Thread(target=lambda: found.append(opened(tmp_path))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and len(catalogues(tmp_path)) == 1
    for source in found:
        same(source, found[0])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(1, 4), max_size=6), min_size=1, max_size=5))
def test_rows_lead_to_samples(shards: list[list[int]]) -> None:
    """``shards``: of each sample, how many rows it has."""
    growing, expected, row = _Growing(), [], 0
    for shard, parts in enumerate(shards):
        counts = np.array(parts, np.int64)
        split = np.flatnonzero(counts > 1)
        rows = ShardRows(np.zeros((int(counts.sum()), 2), np.int32), split, counts[split], ())
        growing.add(Measured(rows, f"{shard:064x}", (), (), Survey(), None))
        for sample, count in enumerate(parts):
            expected += [(shard, sample, row, count)] * count
            row += count
    found = Catalogue(None, np.zeros((row, 2), np.int32), growing.arrays(), (), (), Survey())
    assert [found.locate(i) for i in range(row)] == expected
    assert [int(found.digest(shard), 16) for shard in range(len(shards))] == list(range(len(shards)))
    for outside in (-1, row):
        with pytest.raises(IndexError):
            found.locate(outside)


def test_indexing_in_processes_goes_on_past_what_fails_and_where_it_stopped(tmp_path: Path) -> None:
    fill(tmp_path, ["a"], ["b", "c"], ["d"])
    data = tmp_path / "data"
    (data / "1.tar.idx").mkdir()  # cannot be written
    seen: list[int] = []

    def run(num_processes: int) -> list[Indexed]:
        return index_shards(find_shards(str(data), data), T, None, num_processes, seen.append)

    first = run(2)
    assert [result.samples for result in first] == seen == [1, 0, 1]
    assert [result.problem is None for result in first] == [True, False, True] and "1.tar.idx" in str(first[1].problem)
    assert all(result.made and result.cpu_seconds > 0 for result in (first[0], first[2]))
    (data / "1.tar.idx").rmdir()
    (data / ".2.tar.idx.99").write_bytes(b"half")  # what a kill leaves
    assert [result.made for result in run(1)] == [False, True, False]
    fill(tmp_path, ["a"], ["b", "c"], ["changed"])
    assert [result.made for result in run(1)] == [False, False, True]


def test_results_come_in_order_and_a_death_is_one_items() -> None:
    numbers = list(range(9))
    results = list(map_in_order(square_or_die, 10, numbers, 3))
    assert [result for result in results if not isinstance(result, ProcessDied)] == [
        10 + number**2 for number in numbers if number != 3
    ]
    assert isinstance(results[3], ProcessDied) and "exit status 7" in str(results[3])


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    fill(tmp_path, ["abc"])
    (tmp_path / "run").write_text("a file")
    with pytest.raises(UserError, match="run"):
        opened(tmp_path)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(-1, 12), max_size=5), max_size=5), st.integers(1, 12) | st.none())
def test_surveys_add_up(pieces: list[list[int]], length: int | None) -> None:
    found, everything = Survey(), [n for piece in pieces for n in piece]
    seen = 0
    for piece in pieces:
        found = found.then(survey_of(np.array(piece, np.int32), length), seen)
        seen += len(piece)
    usable = [n for n in everything if n > 0]
    fitting = [n for n in usable if length is None or n <= length]
    first = next((place for place, n in enumerate(everything) if n <= 0), -1)
    assert found == Survey(
        len(everything) - len(usable), first, len(usable) - len(fitting), sum(usable), max(fitting, default=0)
    )
