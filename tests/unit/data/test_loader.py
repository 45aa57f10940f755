import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_qwen3vl.batch import IGNORE, Pack
from megatron_qwen3vl.config.schema import SourceConfig
from megatron_qwen3vl.data.lanes import Planned
from megatron_qwen3vl.data.loader import Loader, LoaderConfig, PackCost, to_pack
from megatron_qwen3vl.data.source import open_source
from megatron_qwen3vl.data.workers import ReadError, WorkerLimits
from megatron_qwen3vl.errors import UserError
from tests.unit.data.fake_source import FakeSource, fake_source
from tests.unit.data.shard_helpers import LIMITS, VISION, model, picture, tokenizer

PAD = 999
CONFIG = LoaderConfig(
    seed=5,
    stage="s1",
    sequence_length=64,
    global_batch_size=4,
    lookahead=4,
    pad_id=PAD,
    num_ranks=1,
    rank=0,
    vision_dp=1,
    workers=0,
    prefetch=2,
    limits=WorkerLimits(300.0, None),
    pixels=True,
    cost=PackCost(token=1.0, pair=0.1, patch=0.5),
)
SOURCES = [
    fake_source("text", *range(1, 41), i3="fail"),
    fake_source("image", *range(20, 80, 3), i5="short", i7="patches"),
]
WEIGHTS = [0.3, 0.7]


@contextmanager
def loader(state: Any = None, sources: Sequence[FakeSource] = SOURCES, **changes: int) -> Iterator[Loader]:
    with closing(Loader(replace(CONFIG, **changes), sources, WEIGHTS[: len(sources)], state)) as found:
        yield found


def content(pack: Pack) -> tuple[Any, ...]:
    arrays = (pack.input_ids, pack.labels, pack.positions, pack.cu_seqlens, pack.visual_index, pack.grids, pack.patches)
    return pack.lane, pack.documents, pack.num_padding, *(None if a is None else (a.shape, a.tobytes()) for a in arrays)


def global_batches(plan: Sequence[tuple[int, int, int]]) -> list[dict[int, tuple[Any, ...]]]:
    """(ranks, workers, steps) one after another, each going on from the state that the one before left."""
    state, batches = None, []
    for num_ranks, workers, steps in plan:
        found: list[dict[int, tuple[Any, ...]]] = [{} for _ in range(steps)]
        states = []
        for rank in range(num_ranks):
            with loader(state, num_ranks=num_ranks, rank=rank, workers=workers) as rank_loader:
                assert rank_loader.changes == []
                for batch in found:
                    step = rank_loader.next()
                    lanes = [pack.lane for pack in step.packs]
                    assert lanes == sorted(lanes) and len(lanes) == 4 // num_ranks and not set(lanes) & set(batch)
                    batch.update({pack.lane: content(pack) for pack in step.packs})
                states.append(json.dumps(rank_loader.state()))
        assert len(set(states)) == 1
        state = json.loads(states[0])
        batches += found
    return batches


def test_ranks_and_workers_do_not_change_the_global_batches() -> None:
    uninterrupted = global_batches([(1, 0, 9)])
    assert all(sorted(batch) == [0, 1, 2, 3] for batch in uninterrupted)
    assert global_batches([(1, 0, 1), (2, 0, 2), (1, 2, 2), (4, 0, 2), (2, 1, 2)]) == uninterrupted


def test_keys_are_those_of_the_whole_global_batch_on_every_rank() -> None:
    with loader() as whole, loader(num_ranks=2, rank=1) as part:
        for _ in range(5):
            step = whole.next()
            assert step.keys_by_lane == tuple(tuple(d.key for d in pack.documents) for pack in step.packs)
            other = part.next()
            assert other.keys_by_lane == step.keys_by_lane and other.left_out == step.left_out
            assert step.num_samples == sum(len(pack.documents) for pack in step.packs)
            read = dict.fromkeys(("text", "image"), 0)
            for pack in step.packs:
                for document, length in zip(pack.documents, np.diff(pack.cu_seqlens), strict=False):
                    read[document.domain] += int(length)
            assert step.source_tokens == other.source_tokens == read
            assert whole.shares == {"text": 0.3, "image": 0.7}


def test_what_is_in_a_pack() -> None:
    with loader() as whole:
        for _ in range(10):
            for pack in whole.next().packs:
                spans = np.diff(pack.cu_seqlens)
                assert len(pack.input_ids) == 64 == pack.cu_seqlens[-1]
                assert len(spans) == len(pack.documents) + (pack.num_padding > 0)
                rows = 0
                for document, start, end in zip(pack.documents, pack.cu_seqlens, pack.cu_seqlens[1:], strict=False):
                    name, _, index = document.key.split("/")
                    if document.failure is None or document.failure == "cannot be decoded":
                        assert (pack.input_ids[start:end] == int(index)).all()
                    assert pack.positions[:, start:end].tolist() == [list(range(end - start))] * 3
                    assert document.num_labels == (pack.labels[start:end] != IGNORE).sum()
                    images = 0 if document.failure else int(index) % 3
                    assert pack.visual_index[(pack.visual_index >= start) & (pack.visual_index < end)].tolist() == list(
                        range(start, start + min(images, end - start))
                    )
                    if images:
                        assert pack.patches is not None
                        assert (pack.patches[rows : rows + 4 * images] == int(index)).all()
                    rows += 4 * images
                assert rows == (0 if pack.patches is None else len(pack.patches))
                assert int(pack.grids.prod(axis=1).sum()) == rows
                if pack.num_padding:
                    assert spans[-1] == pack.num_padding
                    assert (pack.input_ids[-pack.num_padding :] == PAD).all()
                    assert (pack.labels[-pack.num_padding :] == IGNORE).all()
                    assert pack.positions[:, -pack.num_padding :].tolist() == [list(range(pack.num_padding))] * 3


def test_bad_samples_keep_their_place() -> None:
    failures = {}
    with loader() as found:
        for _ in range(30):
            for pack in found.next().packs:
                spans = np.diff(pack.cu_seqlens)
                for document, span, end in zip(pack.documents, spans, pack.cu_seqlens[1:], strict=False):
                    source, _, index = document.key.split("/")
                    length = {"text": SOURCES[0], "image": SOURCES[1]}[source].lengths[int(index)]
                    assert span == length
                    if document.failure:
                        failures[document.key] = document.failure
                        assert document.num_labels == 0 and (pack.labels[end - span : end] == IGNORE).all()
    assert failures == {
        "text/shard/3": "cannot be decoded",
        "image/shard/5": "34 tokens, the index says 35",
        "image/shard/7": "5 patches, its grids have 4",
    }


def test_samples_that_fit_no_pack_are_named_once_across_a_resume() -> None:
    with loader() as whole:
        assert whole.num_left_out == {"text": 0, "image": 5}
        named = [x for _ in range(40) for x in whole.next().left_out]
    assert sorted(x.key for x in named) == [f"image/shard/{i}" for i in range(15, 20)]
    state, resumed = None, []
    for steps in (1, 2, 37):
        with loader(state) as part:
            resumed += [x for _ in range(steps) for x in part.next().left_out]
            state = part.state()
    assert resumed == named


def test_prefetched_steps_do_not_count_in_the_state() -> None:
    with loader(workers=1, prefetch=5) as ahead, loader() as inline:
        for _ in range(3):
            ahead.next()
            inline.next()
            assert ahead.state() == inline.state()


def test_pixels_are_left_out_where_they_are_not_needed() -> None:
    changed = replace(CONFIG, pixels=False)
    with closing(Loader(changed, SOURCES, WEIGHTS)) as blind, loader() as seeing:
        for left, right in zip(blind.next().packs, seeing.next().packs, strict=True):
            assert left.patches is None
            assert content(left)[:-1] == content(right)[:-1] or "image/shard/7" in str(right.documents)


def test_cost_decides_who_reads_a_pack() -> None:
    sources = [fake_source("a", *[64] * 10, *[1] * 640)]
    with loader(sources=sources, num_ranks=2, rank=0) as first, loader(sources=sources, num_ranks=2, rank=1) as second:
        for _ in range(5):
            longest = [[max(np.diff(p.cu_seqlens)) for p in part.next().packs] for part in (first, second)]
            assert abs(sum(n == 64 for n in longest[0]) - sum(n == 64 for n in longest[1])) <= 1
    cost = PackCost(token=1.0, pair=2.0, patch=10.0)
    samples = [Planned(0, 1, 3), Planned(0, 2, 5)]
    assert (cost.language(samples), cost.vision(samples, SOURCES)) == (8 + 2 * (9 + 25), 10 * (4 + 8))


def test_an_unequal_share_is_refused() -> None:
    with pytest.raises(UserError, match="global_batch_size: 4 .* 3 data-parallel"), loader(num_ranks=3):
        pass


@pytest.mark.parametrize("workers", [0, 1])
def test_an_exception_while_reading_names_the_sample(workers: int) -> None:
    on_fire = pytest.raises(ReadError, match="sample a/shard/0: OSError: disk on fire")
    with loader(sources=[fake_source("a", 10, i0="raise")], workers=workers) as found, on_fire:
        found.next()


def test_closing_ends_the_workers_even_in_the_middle_of_a_read() -> None:
    sources = [fake_source("a", *[40] * 3, i0="sleep", i1="sleep", i2="sleep")]
    with loader(sources=sources, workers=2) as found:
        assert found._pool is not None
        found._planned.append(found._plan())
        workers = found._pool.process_ids()
        time.sleep(0.2)
    assert_gone(workers)
    found.close()


ORPHANS = """
import time
from tests.unit.data.test_loader import CONFIG, Loader, fake_source, replace
if __name__ == "__main__":
    sources = [fake_source("a", *[40] * 3, i0="sleep", i1="sleep", i2="sleep")]
    loader = Loader(replace(CONFIG, workers=2), sources, [1.0])
    while not all(worker.ready for worker in loader._pool._workers):
        time.sleep(0.1)
    print("workers", *loader._pool.process_ids(), flush=True)
    loader.next()
"""


def test_no_worker_outlives_a_killed_trainer(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(ORPHANS)
    root = str(Path(__file__).parents[3])
    with subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": root}
    ) as trainer:
        assert trainer.stdout is not None
        workers = [int(number) for number in re.findall(r"\d+", trainer.stdout.readline())]
        time.sleep(0.3)
        os.kill(workers[0], signal.SIGSTOP)  # a decoder that hangs with the interpreter's lock runs no more Python
        trainer.send_signal(signal.SIGKILL)
    assert len(workers) == 2
    assert_gone(workers)


def assert_gone(workers: Sequence[int]) -> None:
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{number}").exists() for number in workers):
        assert time.monotonic() < deadline, f"{workers} still run"
        time.sleep(0.05)


def test_resuming_far_along_costs_nothing() -> None:
    """A position of a billion steps is as near as the first: nothing is replayed."""
    with loader() as found:
        found.next()
        state = found.state()
    far = 10**9
    for lane in state["lanes"]:
        lane["taken"] = [taken + far for taken in lane["taken"]]
        lane["tokens"] = [tokens * far for tokens in lane["tokens"]]
    began = time.process_time()
    with loader(state) as resumed:
        resumed.next()
    assert time.process_time() - began < 1


def test_to_pack_without_padding_has_no_last_span() -> None:
    sample = SOURCES[0].read(9, True)
    pack = to_pack(3, [sample, sample], 2 * len(sample.input_ids), PAD)
    assert pack.cu_seqlens.tolist() == [0, 10, 20] and pack.num_padding == 0


def test_shards_on_disk_through_workers(tmp_path: Path) -> None:
    """The real source: pictures and text from a tar, the same from this process and from workers."""
    for number in range(12):
        (tmp_path / f"{number:02}.png").write_bytes(picture(64 + 32 * (number % 3), 96, seed=number))
        (tmp_path / f"{number:02}.txt").write_text(f"picture number {number}")
    (tmp_path / "05.png").write_bytes(picture(64, 96)[:200])
    source = open_source(
        SourceConfig("captions", str(tmp_path), 1.0), tmp_path, tokenizer(), LIMITS, model(), tmp_path / "cache"
    )
    config = replace(CONFIG, sequence_length=256, global_batch_size=2, pad_id=tokenizer().pad_id)
    batches = []
    for workers in (0, 2):
        with closing(Loader(replace(config, workers=workers), [source], [1.0])) as found:
            batches.append([[content(pack) for pack in found.next().packs] for _ in range(3)])
            keys = found.next().keys_by_lane
    assert batches[0] == batches[1]
    assert all(key.startswith("captions/") for lane in keys for key in lane)
    assert all(pack[-1][0][1] == VISION.patch_values for step in batches[0] for pack in step)


def test_a_pack_without_samples_is_all_padding() -> None:
    pack = to_pack(3, [], 8, pad_id=5)
    assert pack.input_ids.tolist() == [5] * 8 and pack.cu_seqlens.tolist() == [0, 8] and pack.num_padding == 8
    assert pack.documents == () and pack.grids.shape == (0, 3) and len(pack.visual_index) == 0
