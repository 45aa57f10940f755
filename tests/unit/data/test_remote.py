"""Files behind addresses, against real servers: the bytes of the file, or an error that says what happened."""

import io
import os
import pickle
import random
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from faulty_server import FAULTS, FaultyServer

from megatron_qwen3vl.config.schema import StorageConfig
from megatron_qwen3vl.data.places import LocalPlace
from megatron_qwen3vl.data.remote import RemotePlace, list_tars
from megatron_qwen3vl.data.storage import StorageError
from megatron_qwen3vl.errors import BadSample

STORAGE = StorageConfig(
    retries=3,
    backoff_s=0.001,
    timeout_s=20.0,
    endpoint=None,
    anonymous=True,
    indexes=None,
    cache=None,
    cache_bytes=10**9,
    cache_block=0,
)
DATA = random.Random(0).randbytes(300_000)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FaultyServer]:
    (tmp_path / "served").mkdir()
    (tmp_path / "served/a.tar").write_bytes(DATA)
    with FaultyServer(tmp_path / "served", stall_s=3) as running:
        yield running


@pytest.fixture
def place(server: FaultyServer) -> RemotePlace:
    return RemotePlace(f"{server.address}/a.tar", STORAGE)


def test_reads_what_the_local_file_holds(server: FaultyServer, place: RemotePlace) -> None:
    local = LocalPlace(server.folder / "a.tar")
    for offset, size in ((0, 1), (5, 1000), (299_000, 1000), (0, 300_000), (17, 0)):
        assert place.read(offset, size) == local.read(offset, size)
    assert place.size() == local.size() == 300_000
    for offset, size in ((299_999, 2), (300_000, 1), (400_000, 10)):
        for reader in (place, place.pinned(place.stamp()), local):
            with pytest.raises(BadSample, match="ends before"):
                reader.read(offset, size)
    with place.open() as file, local.open() as same:
        for _ in range(2):
            assert file.read(700) == same.read(700)
            file.seek(123_456)
            same.seek(123_456)
        file.seek(-100, os.SEEK_END)
        assert file.read() == DATA[-100:]


def impatient(fault: str) -> StorageConfig:
    return replace(STORAGE, timeout_s=0.5) if fault == "stall" else STORAGE


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_tried_again(server: FaultyServer, fault: str) -> None:
    place = RemotePlace(f"{server.address}/a.tar", impatient(fault))
    server.script(fault, fault)
    assert place.read(1000, 5000) == DATA[1000:6000]
    assert [request.fault for request in server.requests] == [fault, fault, None]


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("error", "status 500"),
        ("throttle", "status 429"),
        ("short", "bytes 1000 to 3500 came"),
        ("cut", "connection ended too early"),
        ("reset", "connection"),
        ("stall", "nothing came for 0.5 s"),
        ("whole", "whole file where a range was asked for"),
        ("shifted", "bytes 0 to 5000 came"),
    ],
)
def test_after_the_last_try_address_bytes_and_what_happened_are_named(
    server: FaultyServer, fault: str, said: str
) -> None:
    server.script(*[fault] * 4)
    place = RemotePlace(f"{server.address.replace('//', '//me:secret@')}/a.tar?X-Signature=secret", impatient(fault))
    with pytest.raises(OSError) as error:
        place.read(1000, 5000)
    text = str(error.value)
    assert f"{server.address}/a.tar: bytes 1000 to 6000 could not be had in 4 tries" in text and said in text
    assert "secret" not in text + repr(error.value) + repr(place) and error.value.strerror == text
    assert str(pickle.loads(pickle.dumps(error.value))) == text
    assert len(server.requests) == 4


def test_what_no_other_try_would_mend_is_not_tried(server: FaultyServer) -> None:
    with pytest.raises(FileNotFoundError, match=f"{server.address}/none.tar does not exist"):
        RemotePlace(f"{server.address}/none.tar", STORAGE).read(0, 10)
    (server.folder / "folder").mkdir()
    with pytest.raises(StorageError, match="folder: the server refuses access"):
        RemotePlace(f"{server.address}/folder", STORAGE).read(0, 10)
    assert len(server.requests) == 2
    with pytest.raises(StorageError, match="in 4 tries; the last: (no server there|the connection)"):
        RemotePlace("http://127.0.0.1:9/a.tar?secret", STORAGE).read(0, 10)


def test_bytes_of_another_state_are_never_given(server: FaultyServer, place: RemotePlace) -> None:
    pinned = place.pinned(place.stamp())
    assert pinned.read(0, 10) == DATA[:10]
    server.etags["a.tar"] = '"other"'
    with pytest.raises(StorageError, match="changed while it was in use .*another ETag"):
        pinned.read(0, 10)
    del server.etags["a.tar"]
    assert pinned.read(0, 10) == DATA[:10]
    (server.folder / "a.tar").write_bytes(DATA + b"x")
    with pytest.raises(StorageError, match="index it again"):
        pinned.read(0, 10)


def test_a_cache_never_gives_bytes_of_another_state(server: FaultyServer, tmp_path: Path) -> None:
    place = RemotePlace(f"{server.address}/a.tar", replace(STORAGE, cache=str(tmp_path / "cache")))
    for data in (DATA, DATA[::-1]):
        (server.folder / "a.tar").write_bytes(data)
        for _ in range(2):
            assert place.pinned(place.stamp()).read(5, 500) == data[5:505]
    assert [request.method for request in server.requests].count("GET") == 2


def test_pickles_small_and_reads_in_many_threads(server: FaultyServer, place: RemotePlace) -> None:
    server.rates = {fault: 0.05 for fault in FAULTS if fault != "stall"}
    pinned = pickle.loads(pickle.dumps(place.pinned(place.stamp())))
    assert len(pickle.dumps(pinned)) < 700
    ranges = [(n * 1000, 1000) for n in range(200)]
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(lambda span: pinned.read(*span), ranges)) == [DATA[o : o + s] for o, s in ranges]
    faults = [request.fault for request in server.requests if request.fault]
    assert len(set(faults)) > 4 and len(faults) > 20


def test_addresses_with_odd_names(server: FaultyServer) -> None:
    (server.folder / "ü b").mkdir()
    (server.folder / "ü b/x+1 %41.tar").write_bytes(b"odd")
    assert RemotePlace(f"{server.address}/%C3%BC%20b/x+1%20%2541.tar", STORAGE).read(0, 3) == b"odd"


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_buckets_are_listed_read_and_written(server: FaultyServer, scheme: str) -> None:
    """The two protocols as far as this program needs them, on a server of our own; S3 again with moto's below."""
    storage = replace(STORAGE, endpoint=server.address)
    for name in ("p/a-b.tar", "p/a/2.tar", "p/a/10.tar", "p/.hidden.tar", "p/a/x.idx", "q/0.tar"):
        (server.folder / "bucket" / name).parent.mkdir(parents=True, exist_ok=True)
        (server.folder / "bucket" / name).write_bytes(name.encode())
    tars = list_tars(f"{scheme}://bucket/p/", storage)
    assert [tar.name for tar in tars] == [f"{scheme}://bucket/p/{name}.tar" for name in ("a/10", "a/2", "a-b")]
    assert [str(path) for path in sorted(Path("p").joinpath(n) for n in ("a-b.tar", "a/2.tar", "a/10.tar"))] == [
        tar.name.split("/", 3)[3] for tar in tars
    ], "as a local folder is ordered"
    assert [tar.read(2, 3) for tar in tars] == [b"a/1", b"a/2", b"a-b"]
    beside = tars[0].sibling(".idx")
    with pytest.raises(FileNotFoundError):
        beside.content()
    if scheme == "s3":
        beside.write(b"index")
        assert beside.content() == b"index"


def walk(path: Path, sizes: list[int]) -> int:
    with tarfile.open(path, "w") as tar:
        for number, size in enumerate(sizes):
            info = tarfile.TarInfo(f"{number:04d}.bin")
            info.size = size
            tar.addfile(info, io.BytesIO((DATA * (1 + size // len(DATA)))[:size]))
    return path.stat().st_size


@pytest.mark.parametrize(("sizes", "share", "requests"), [([300] * 3000, 1.01, 14), ([2_000_000] * 30, 0.04, 36)])
def test_a_walk_over_headers_skips_what_is_big_and_asks_seldom(
    server: FaultyServer, sizes: list[int], share: float, requests: int
) -> None:
    total = walk(server.folder / "b.tar", sizes)
    with RemotePlace(f"{server.address}/b.tar", STORAGE).gathered() as place, place.open() as file:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            headers = [(member.offset_data, member.size) for member in tar]
        for offset, size in headers:
            assert place.read(offset, min(size, 10_000)) == DATA[: min(size, 10_000)]
        for offset, size in headers[::10]:
            middle = size // 2
            assert place.read(offset + middle, 100) == (DATA * (1 + size // len(DATA)))[middle : middle + 100]
    assert [size for _, size in headers] == sizes
    assert sum(request.sent for request in server.requests) < share * total
    assert len(server.requests) <= requests
