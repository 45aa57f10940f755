"""Shards behind addresses next to the same shards on the disk: the same index, keys and samples; what it costs."""

import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import boto3
import numpy as np
import pytest
from faulty_server import FAULTS, FaultyServer
from moto.server import ThreadedMotoServer

from megatron_qwen3vl.config.schema import SourceConfig, StorageConfig
from megatron_qwen3vl.data.index import index_path, read_index
from megatron_qwen3vl.data.index_files import stored_path
from megatron_qwen3vl.data.indexing import get_index, index_shards
from megatron_qwen3vl.data.remote import RemotePlace
from megatron_qwen3vl.data.shards import find_shards, write_shard
from megatron_qwen3vl.data.source import Source, open_source
from megatron_qwen3vl.errors import UserError
from tests.unit.data.shard_helpers import LIMITS, build_indexes, document, image_part, model, picture, tokenizer
from tests.unit.data.test_remote import STORAGE

T = tokenizer()


def samples(number: int) -> list[tuple[str, dict[str, bytes]]]:
    jpeg, png = picture(400, 300, "JPEG", number), picture(20, 30, "PNG", number)
    return [
        (f"{number}/a", {"json": document("words", image_part("0.jpg"), "more", domain="d"), "0.jpg": jpeg}),
        (f"{number}/b", {"json": document(image_part("0.png"), image_part("1.jpg")), "1.jpg": jpeg, "0.png": png}),
        (f"{number}/c", {"txt": b"only words", "other": bytes(100)}),
        (f"{number}/d", {"json": b"{"}),
    ]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FaultyServer]:
    for number, name in enumerate(("0.tar", "sub/1.tar", "sub/2.tar")):
        path = tmp_path / "served/bucket/tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_shard(path, samples(number))
    with FaultyServer(tmp_path / "served", stall_s=3) as running:
        yield running


@pytest.fixture
def storage(server: FaultyServer) -> StorageConfig:
    return replace(STORAGE, endpoint=server.address)


def opened(shards: str | list[str], storage: StorageConfig | None, cache: Path | None) -> Source:
    spec = shards if isinstance(shards, str) else tuple(shards)
    return open_source(SourceConfig("src", spec, 1.0), Path("/"), T, LIMITS, model(), cache, storage=storage)


def indexed(spec: str | list[str], storage: StorageConfig | None, to: Path | None) -> None:
    results = index_shards(find_shards(spec, Path("/"), storage), T, to, 1, lambda count: None)
    assert [result.problem for result in results if result.problem] == []


def assert_same(one: Source, other: Source) -> None:
    assert [one.key(i) for i in range(len(one))] == [other.key(i) for i in range(len(other))]
    assert one.lengths.tolist() == other.lengths.tolist() and one.domains == other.domains
    for i in range(len(one)):
        for pixels in (True, False):
            ours, theirs = one.read(i, pixels), other.read(i, pixels)
            for name in ("key", "domain", "failure"):
                assert getattr(ours, name) == getattr(theirs, name)
            for name in ("input_ids", "labels", "positions", "visual_index", "grids", "patches"):
                np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))


@pytest.mark.parametrize("scheme", ["http", "s3", "gs"])
def test_the_same_source_as_the_folder(
    server: FaultyServer, storage: StorageConfig, tmp_path: Path, scheme: str
) -> None:
    web = f"{server.address}/bucket/tree"
    patterns = [f"{web}/0.tar", f"{web}/sub/{{1,2}}.tar"]
    spec: str | list[str] = patterns if scheme == "http" else f"{scheme}://bucket/tree/"
    indexed(spec, storage, tmp_path / "indexes")
    folder = server.folder / "bucket/tree"
    for local, remote in zip(find_shards(str(folder), folder), find_shards(spec, folder, storage), strict=True):
        assert local.name == remote.name
        ours, theirs = get_index(remote, T, tmp_path / "indexes"), get_index(local, T, None)
        assert ours.arrays.keys() == theirs.arrays.keys()
        for name, array in theirs.arrays.items():
            np.testing.assert_array_equal(ours.arrays[name], array, err_msg=name)
        assert ours.path == stored_path(remote, T, tmp_path / "indexes")
    local_source = opened(str(folder), None, None)
    assert [local_source.key(i) for i in (0, 4)] == ["src/0/0/a", "src/sub/1/1/a"]
    server.rates = {fault: 0.04 for fault in FAULTS if fault != "stall"}
    assert_same(pickle.loads(pickle.dumps(opened(spec, storage, tmp_path / "indexes"))), local_source)
    cached = replace(storage, cache=str(tmp_path / "cache"), cache_block=4096)
    assert_same(opened(spec, cached, tmp_path / "indexes"), local_source)


def test_an_index_made_on_the_disk_is_found_beside_the_shard_and_kept(
    server: FaultyServer, storage: StorageConfig, tmp_path: Path
) -> None:
    folder = server.folder / "bucket/tree"
    build_indexes(folder, T)
    spec = f"{server.address}/bucket/tree/sub/{{1,2}}.tar"
    first = opened(spec, storage, tmp_path / "cache")
    tar_bytes = sum(r.sent for r in server.requests if r.path.endswith(".tar") and r.method == "GET")
    assert tar_bytes == 2 * 512, "one header of each tar, to know the copy again"
    server.requests.clear()
    again = opened(spec, storage, tmp_path / "cache")
    assert [request.method for request in server.requests] == ["HEAD", "HEAD"]
    assert_same(first, again)
    assert_same(opened(spec, storage, None), again)


def test_index_beside_the_object(server: FaultyServer, storage: StorageConfig, tmp_path: Path) -> None:
    indexed("s3://bucket/tree/", storage, None)
    assert sorted(path.name for path in server.folder.rglob("*.idx")) == ["0.tar.idx", "1.tar.idx", "2.tar.idx"]
    server.requests.clear()
    results = index_shards(find_shards("s3://bucket/tree", Path("/"), storage), T, None, 1, lambda count: None)
    assert [result.made for result in results] == [False] * 3
    assert not any(request.path.endswith(".tar") for request in server.requests), "nothing is read again"
    local = opened(str(server.folder / "bucket/tree"), None, None)
    assert_same(opened("s3://bucket/tree", storage, tmp_path / "cache"), local)


def test_a_run_never_indexes_what_lies_elsewhere(server: FaultyServer, storage: StorageConfig, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"0.tar has no index .* run `data index http.*0.tar --to FOLDER`"):
        opened(f"{server.address}/bucket/tree/0.tar", storage, tmp_path / "cache")
    assert not any(request.sent for request in server.requests if request.status < 400)


@pytest.mark.parametrize("to", ["folder", "beside"])
def test_a_changed_shard_is_refused(server: FaultyServer, storage: StorageConfig, tmp_path: Path, to: str) -> None:
    spec, shard = "s3://bucket/tree/sub", server.folder / "bucket/tree/sub/1.tar"
    indexed(spec, storage, tmp_path / "indexes" if to == "folder" else None)
    held = opened(spec, storage, tmp_path / "indexes")
    data = shard.read_bytes()
    shard.write_bytes(data[:-1] + b"x")  # the same size
    with pytest.raises(UserError, match=r"sub/1.tar has changed since .*run `data index .*restore the shard"):
        opened(spec, storage, tmp_path / "indexes")
    with pytest.raises(OSError, match=r"sub/1.tar changed while it was in use"):
        held.read(0, pixels=True)
    indexed(spec, storage, tmp_path / "indexes" if to == "folder" else None)
    assert opened(spec, storage, tmp_path / "indexes").read(0, pixels=True).failure is None


def test_an_index_of_another_tree_does_not_pass_for_a_copy(
    server: FaultyServer, storage: StorageConfig, tmp_path: Path
) -> None:
    """Same size, other files: the copy's last header is not where the index says."""
    build_indexes(server.folder / "bucket/tree", T)
    path = server.folder / "bucket/tree/0.tar"
    other = [(key, {"txt": files["txt"]} if "txt" in files else files) for key, files in reversed(samples(0))]
    size = path.stat().st_size
    write_shard(path, other)
    path.write_bytes(path.read_bytes()[:size].ljust(size, b"\0"))
    with pytest.raises(UserError, match="has changed since it was indexed"):
        opened(f"{server.address}/bucket/tree/0.tar", storage, tmp_path / "cache")


def test_a_sample_costs_one_request_and_its_own_bytes(
    server: FaultyServer, storage: StorageConfig, tmp_path: Path
) -> None:
    indexed(f"{server.address}/bucket/tree/0.tar", storage, tmp_path / "i")
    source = opened(f"{server.address}/bucket/tree/0.tar", storage, tmp_path / "i")
    for i, files in enumerate(files for _, files in samples(0)[:3]):
        server.requests.clear()
        assert source.read(i, pixels=True).failure is None
        (request,) = server.requests
        assert request.sent < sum(map(len, files.values())) + 512 * 2 * len(files)
        server.requests.clear()
        source.read(i, pixels=False)
        text = next(files[name] for name in ("json", "txt") if name in files)
        assert [request.sent for request in server.requests] == [len(text)]


def test_slices_cost_one_request_for_neighbours(server: FaultyServer, storage: StorageConfig, tmp_path: Path) -> None:
    indexed(f"{server.address}/bucket/tree/0.tar", storage, tmp_path / "i")
    kept = replace(storage, cache=str(tmp_path / "cache"), cache_block=1 << 20)
    source = opened(f"{server.address}/bucket/tree/0.tar", kept, tmp_path / "i")
    server.requests.clear()
    for _ in range(2):
        assert [source.read(i, pixels=True).failure for i in range(3)] == [None] * 3
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ("{server}/bucket/tree/none{{0,1}}.tar", "none0.tar does not exist\n.*none1.tar does not exist"),
        ("{server}/bucket/tree/", "a web server lists no folders"),
        ("s3://bucket/empty/", "holds no .tar"),
        ("ftp://host/a.tar", "ftp:// is not read"),
        (["{server}/bucket/tree/0.tar"] * 2, "named twice"),
        (["{server}/bucket/tree/0.tar", "local.tar"], "a source of its own"),
        (["http://host/a.tar", "http://me:secret@host/{{1.tar?sig=secret"], r"^shards: http://host/\{1.tar is not"),
    ],
)
def test_unusable_addresses(server: FaultyServer, storage: StorageConfig, spec: str | list[str], problem: str) -> None:
    entries = [entry.format(server=server.address) for entry in ([spec] if isinstance(spec, str) else spec)]
    with pytest.raises(UserError, match=f"(?s){problem}") as error:
        find_shards(entries, Path("/"), storage)
    assert "secret" not in str(error.value)


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def test_s3_as_moto_serves_it(server: FaultyServer, moto: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Signed requests with the credentials of the environment."""
    for name, value in {"ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret", "REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto)
    client = boto3.client("s3", endpoint_url=moto, region_name="us-east-1")
    client.create_bucket(Bucket="bucket")
    folder = server.folder / "bucket/tree"
    for path in folder.rglob("*.tar"):
        client.put_object(Bucket="bucket", Key=f"tree/{path.relative_to(folder)}", Body=path.read_bytes())
    storage = replace(STORAGE, anonymous=False)
    indexed("s3://bucket/tree/", storage, None)
    source = opened("s3://bucket/tree/", storage, tmp_path / "cache")
    assert_same(source, opened(str(folder), None, None))
    place = find_shards("s3://bucket/tree/", Path("/"), storage)[0].place
    listed, asked = place.stamp(), RemotePlace("s3://bucket/tree/0.tar", storage).stamp()
    assert (listed.size, listed.digest) == (asked.size, asked.digest), "a listing knows the same ETag as a HEAD"
    client.put_object(Bucket="bucket", Key="tree/0.tar", Body=(folder / "sub/1.tar").read_bytes())
    with pytest.raises(OSError, match="changed while it was in use"):
        source.read(0, pixels=True)
    with pytest.raises(UserError, match="has changed since it was indexed"):
        opened("s3://bucket/tree/", storage, tmp_path / "cache")


def test_indexes_elsewhere_serve_a_disk_that_may_not_be_written(server: FaultyServer, tmp_path: Path) -> None:
    folder = server.folder / "bucket/tree"
    indexed(str(folder), None, tmp_path / "indexes")
    assert not list(folder.rglob("*.idx"))
    (shard, *_) = find_shards(str(folder), folder)
    made = read_index(stored_path(shard, T, tmp_path / "indexes"))
    assert get_index(shard, T, tmp_path / "indexes").path == made.path and not index_path(shard).exists()
