"""Workers that die, hang and take too much memory, really: nothing of what a run uses changes by it."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_qwen3vl.config.schema import SourceConfig
from megatron_qwen3vl.data.loader import Loader
from megatron_qwen3vl.data.quarantine import failed_documents
from megatron_qwen3vl.data.source import Source, open_source
from megatron_qwen3vl.data.workers import ReadError, WorkerLimits
from megatron_qwen3vl.errors import UserError
from tests.unit.data.fake_source import FakeSource, fake_source
from tests.unit.data.shard_helpers import LIMITS, model, picture, tokenizer
from tests.unit.data.test_loader import CONFIG, assert_gone, content

ONE_EACH = replace(CONFIG, global_batch_size=1, workers=1, prefetch=6)  # a sample of 40 tokens fills a pack
SLOW = WorkerLimits(1.5, None)


def packs_of(source: FakeSource, steps: int, **changes: Any) -> list[tuple[Any, ...]]:
    with closing(Loader(replace(ONE_EACH, **changes), [source], [1.0])) as loader:
        return [content(pack) for _ in range(steps) for pack in loader.next().packs]


@pytest.mark.parametrize(
    ("what", "reason", "limits"),
    [
        ("die", "the process reading it died twice (exit status -9)", CONFIG.limits),
        ("sleep", "took longer than data.sample_timeout twice (1.5 s)", SLOW),
        ("greedy", "took more memory than data.worker_memory twice (0.5 GiB)", WorkerLimits(300.0, 0.5)),
        ("greedy torch", "took more memory than data.worker_memory twice (0.5 GiB)", WorkerLimits(300.0, 0.5)),
    ],
)
def test_a_sample_that_ends_two_workers_keeps_its_place_and_has_a_reason(
    what: str, reason: str, limits: WorkerLimits
) -> None:
    source = fake_source("a", *[40] * 8, i4=what)
    disturbed = packs_of(source, 8, limits=limits)
    undisturbed = packs_of(fake_source("a", *[40] * 8), 8, workers=0)
    (place,) = [n for n, pack in enumerate(undisturbed) if pack[1][0].key == "a/shard/4"]
    assert [pack for n, pack in enumerate(disturbed) if n != place] == [
        pack for n, pack in enumerate(undisturbed) if n != place
    ]
    (document,) = disturbed[place][1]
    assert (document.key, document.num_labels, document.failure) == ("a/shard/4", 0, reason)
    (named,) = failed_documents(disturbed[place][1], "s1", 3)
    assert (named.source, named.key, named.reason) == ("a", "a/shard/4", reason)


def test_workers_that_always_die_end_the_run_with_a_reason() -> None:
    source = fake_source("a", *[40] * 30, **{f"i{n}": "die" for n in range(30)})
    loader = Loader(replace(ONE_EACH, workers=2, prefetch=30), [source], [1.0])
    with closing(loader), pytest.raises(ReadError, match=r"\d+ reading processes in a row .* died .*-9.*data.workers"):
        for _ in range(30):
            loader.next()
    assert_gone(loader._pool.process_ids())


def test_a_machine_that_gives_no_process_ends_the_run_with_a_reason() -> None:
    source = fake_source("a", *[40] * 30)
    loader = Loader(ONE_EACH, [source], [1.0])
    lowest_free = os.dup(0)
    os.close(lowest_free)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with closing(loader):
        loader.next()
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))  # no new pipe to a new process
        try:
            os.kill(loader._pool.process_ids()[0], signal.SIGKILL)
            with pytest.raises(ReadError, match="no process can be started to read samples .*Too many open files"):
                for _ in range(30):
                    loader.next()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@dataclass(frozen=True)
class Nameless(FakeSource):
    """Its index was removed while it was in use."""

    def key(self, index: int) -> str:
        raise UserError("the index was removed; start again")


@pytest.mark.parametrize("what", ["", "die"])  # the worker cannot name its sample; this process cannot
def test_samples_that_cannot_be_named_end_the_run_with_a_reason(what: str) -> None:
    source = Nameless("a", np.full(8, 40, np.int32), dict.fromkeys(range(8), what))
    loader = Loader(ONE_EACH, [source], [1.0])
    with closing(loader), pytest.raises(ReadError, match="the index was removed"):
        loader.next()
    assert_gone(loader._pool.process_ids())


def test_a_program_that_ends_without_closing_takes_its_workers_along() -> None:
    """As one does that cannot load the weights for which its data is open already."""
    program = (
        "from tests.faults.test_workers import ONE_EACH, Loader, fake_source\n"
        "loader = Loader(ONE_EACH, [fake_source('a', *[40] * 8)], [1.0])\n"
        "print(*loader._pool.process_ids(), flush=True)\n"
        "raise SystemExit(3)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, timeout=120)
    assert ended.returncode == 3
    assert_gone([int(number) for number in ended.stdout.split()])


def pictures(folder: Path) -> Source:
    for number in range(24):
        (folder / f"{number:02}.png").write_bytes(picture(64 + 32 * (number % 3), 96, seed=number))
        (folder / f"{number:02}.txt").write_text(f"picture number {number}")
    (folder / "05.png").write_bytes(picture(64, 96)[:200])
    config = SourceConfig("captions", str(folder), 1.0)
    return open_source(config, folder, tokenizer(), LIMITS, model(), folder / "cache")


def test_killed_and_stopped_workers_change_no_sample_and_no_order(tmp_path: Path) -> None:
    """kill -9 and SIGSTOP on workers of the loader over real shards, again and again: the same bits as undisturbed."""
    source = pictures(tmp_path)
    config = replace(
        CONFIG, sequence_length=256, global_batch_size=4, pad_id=tokenizer().pad_id, limits=WorkerLimits(5.0, 4.0)
    )
    steps = 8

    def run(workers: int, signals: Sequence[int | None]) -> list[Any]:
        found = []
        with closing(Loader(replace(config, workers=workers), [source], [1.0])) as loader:
            for number in signals:
                found.append(([content(pack) for pack in loader.next().packs], loader.state()))
                if number is not None:
                    pool = loader._pool
                    victim = pool.process_ids()[len(found) % workers]
                    os.kill(victim, number)
                    # until it is replaced and its sample read: a second blow to the same one would make it a bad one
                    while victim in (pids := pool.process_ids()) or len(pids) < workers or pool._strikes:
                        time.sleep(0.05)
            pids = loader._pool.process_ids() if loader._pool else []
        assert_gone(pids)
        return found

    undisturbed = run(0, [None] * steps)
    kill, stop = signal.SIGKILL, signal.SIGSTOP
    assert run(2, [kill, kill, stop, kill, None, kill, stop, None]) == undisturbed
    failures = {document.failure for step, _ in undisturbed for pack in step for document in pack[1]}
    assert len(failures) == 2 and not any("twice" in (failure or "") for failure in failures)


def test_arrays_come_back_as_they_were_written() -> None:
    """Of every kind that a sample has: empty ones, none at all, and ones larger than a pipe holds."""
    source = fake_source("a", 40, 41, 42, i1="fail")
    for pixels in (True, False):
        with closing(Loader(replace(ONE_EACH, pixels=pixels), [source], [1.0])) as loader:
            for _ in range(3):
                (pack,) = loader.next().packs
                row = int(pack.documents[0].key.rpartition("/")[2])
                sample = source.read(row, pixels)
                length = len(sample.input_ids)
                assert pack.input_ids.flags.writeable and np.array_equal(pack.input_ids[:length], sample.input_ids)
                assert (pack.patches is None) == (sample.patches is None)
                assert sample.patches is None or np.array_equal(pack.patches, sample.patches)
