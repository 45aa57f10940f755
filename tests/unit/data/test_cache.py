"""The local folder of ranges: never over its bound, entries whole or absent, shared by processes and threads."""

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from megatron_qwen3vl.data.cache import Cache

DATA = random.Random(0).randbytes(200_000)


class Remote:
    """Counts what is fetched."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    def fetch(self, offset: int, size: int) -> bytes:
        self.asked.append((offset, size))
        assert offset >= 0 and offset + size <= len(DATA)
        return DATA[offset : offset + size]


def reader(cache: Cache, fetch: Callable[[int, int], bytes]) -> Callable[[int, int], bytes]:
    return lambda offset, size: cache.read("file", offset, size, len(DATA), fetch)


def held(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*/*"))


def test_what_was_read_is_not_fetched_again(tmp_path: Path) -> None:
    remote = Remote()
    for _ in range(2):
        assert reader(Cache(tmp_path, 10**6, 0), remote.fetch)(7, 1000) == DATA[7:1007]
    assert remote.asked == [(7, 1000)] and held(tmp_path) == 1000
    Cache(tmp_path, 10**6, 0).read("another state", 7, 1000, len(DATA), remote.fetch)
    assert len(remote.asked) == 2


@pytest.mark.parametrize("block", [1000, 4096, 300_000])
def test_blocks_serve_their_neighbours_and_are_fetched_together(tmp_path: Path, block: int) -> None:
    remote, rng = Remote(), random.Random(1)
    read = reader(Cache(tmp_path, 10**7, block), remote.fetch)
    for _ in range(200):
        offset = rng.randrange(len(DATA))
        size = rng.randrange(1, len(DATA) - offset + 1) if rng.random() < 0.1 else min(300, len(DATA) - offset)
        assert read(offset, size) == DATA[offset : offset + size]
    covered = sorted(byte for offset, size in remote.asked for byte in (offset, offset + size))
    assert sum(size for _, size in remote.asked) == held(tmp_path) <= len(DATA), "no byte was fetched twice"
    assert all(byte % block == 0 or byte == len(DATA) for byte in covered)
    assert Remote().asked == [] and len(remote.asked) < 200


def test_never_more_than_the_bound_and_the_oldest_go_first(tmp_path: Path) -> None:
    remote = Remote()
    read = reader(Cache(tmp_path, 10_000, 0), remote.fetch)
    for number in range(10):
        read(number, 1000)
        for path in tmp_path.glob("*/*"):
            os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns - 10**9))  # time passes
    read(0, 1000)  # used again
    read(100, 1000)
    assert held(tmp_path) <= 10_000 and remote.asked[-1] == (100, 1000) and len(remote.asked) == 11
    read(0, 1000)
    assert len(remote.asked) == 11, "what was used lately stays"
    read(1, 1000)
    assert len(remote.asked) == 12, "the one used longest ago went"
    read(0, 20_000)
    assert held(tmp_path) <= 10_000, "what is larger than the bound is not kept"


def test_damage_is_fetched_again(tmp_path: Path) -> None:
    remote = Remote()
    read = reader(Cache(tmp_path, 10_000, 0), remote.fetch)
    read(0, 1000)
    (entry,) = tmp_path.glob("*/*")
    os.truncate(entry, 400)
    assert read(0, 1000) == DATA[:1000] and len(remote.asked) == 2
    (tmp_path / "total").write_text("junk")
    assert read(5, 9_500) == DATA[5:9505] and held(tmp_path) <= 10_000


def test_what_a_killed_process_left_half_written_is_not_read_and_goes(tmp_path: Path) -> None:
    remote = Remote()
    read = reader(Cache(tmp_path, 10_000, 0), remote.fetch)
    read(0, 1000)
    (entry,) = tmp_path.glob("*/*")
    left = entry.with_name(f"{entry.name}.99.1.partial")
    entry.rename(left)
    os.utime(left, (1, 1))
    assert read(0, 1000) == DATA[:1000] and len(remote.asked) == 2
    for number in range(20):
        read(number * 1000, 1000)
    assert not left.exists() and held(tmp_path) <= 10_000


def test_a_folder_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    remote = Remote()
    (tmp_path / "file").write_bytes(b"")
    read = reader(Cache(tmp_path / "file", 10_000, 0), remote.fetch)
    assert read(0, 10) == DATA[:10] and read(0, 10) == DATA[:10] and len(remote.asked) == 2


_READER = """
import random, sys
from pathlib import Path
from megatron_qwen3vl.data.cache import Cache
data = random.Random(0).randbytes(200_000)
rng = random.Random(int(sys.argv[2]))
cache = Cache(Path(sys.argv[1]), 50_000, int(sys.argv[3]))
for _ in range(120):
    offset = rng.randrange(100) * 1900
    got = cache.read("file", offset, 1900, len(data), lambda o, s: data[o : o + s])
    assert got == data[offset : offset + 1900]
"""


@pytest.mark.parametrize("block", [0, 4096])
def test_several_processes_share_it(tmp_path: Path, block: int) -> None:
    command = [sys.executable, "-c", _READER, str(tmp_path)]
    readers = [subprocess.Popen([*command, str(seed), str(block)]) for seed in range(3)]
    most = 0
    while any(process.poll() is None for process in readers):
        sizes = []
        for path in tmp_path.glob("*/*"):
            with suppress(OSError):
                sizes.append(path.stat().st_size)
        most = max(most, sum(sizes))
        time.sleep(0.05)
    assert [process.returncode for process in readers] == [0, 0, 0]
    assert held(tmp_path) <= 50_000 and most > 25_000


def test_threads_share_it(tmp_path: Path) -> None:
    remote = Remote()
    read = reader(Cache(tmp_path, 30_000, 0), remote.fetch)
    spans = [(random.Random(n).randrange(60) * 1000, 1000) for n in range(600)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda span: read(*span), spans)) == [DATA[o : o + s] for o, s in spans]
    assert held(tmp_path) <= 30_000
