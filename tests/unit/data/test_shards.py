"""Tars and folders: found, read by offset, readable up to the damage."""

import io
import os
import tarfile
from pathlib import Path

import pytest
import webdataset

from megatron_qwen3vl.data.places import LocalPlace
from megatron_qwen3vl.data.shards import Shard, find_shards, read_member, scan, take_stamp, write_shard
from megatron_qwen3vl.errors import BadSample, UserError

SAMPLES = [(f"{number:03d}", {"json": b"{}" * number, "0.jpg": bytes([number]) * 700}) for number in range(5)]


def content(shard: Shard) -> dict[str, dict[str, bytes]]:
    groups = scan(shard).groups
    return {g.key: {m.name: read_member(shard, g.key, m) for m in g.members} for g in groups}


def test_what_is_written_is_read_by_us_and_by_webdataset(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    assert write_shard(path, SAMPLES) == 5
    shard = Shard(LocalPlace(path), "a")
    assert content(shard) == dict(SAMPLES) and scan(shard).damage == ()
    theirs = {
        s["__key__"]: {"json": s["json"], "0.jpg": s["0.jpg"]}
        for s in webdataset.WebDataset(str(path), shardshuffle=False)
    }
    assert theirs == dict(SAMPLES)
    assert [p.name for p in tmp_path.iterdir()] == ["a.tar"]


def test_same_samples_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.tar", "b.tar"):
        write_shard(tmp_path / name, SAMPLES)
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


def test_a_key_that_would_not_come_back_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="dot"):
        write_shard(tmp_path / "a.tar", [("0.5", {"json": b"{}"})])
    assert list(tmp_path.iterdir()) == []


def test_foreign_tar(tmp_path: Path) -> None:
    """Folders, links, hidden files, names without a dot and interleaved samples, as tar programs write them."""
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        folder = tarfile.TarInfo("d.x")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        link = tarfile.TarInfo("d/l.json")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        long_name = "d/" + "n" * 150
        for name in ("d/0.json", "plain", ".hidden", "d/1.json", "d/0.1.jpg", f"{long_name}.json"):
            info = tarfile.TarInfo(name)
            info.size = 3
            tar.addfile(info, io.BytesIO(b"abc"))
    shard = Shard(LocalPlace(tmp_path / "a.tar"), "a")
    assert {key: sorted(files) for key, files in content(shard).items()} == {
        "d/0": ["1.jpg", "json"],
        "d/1": ["json"],
        long_name: ["json"],
    }


def test_plain_folder(tmp_path: Path) -> None:
    for name in ("b.txt", "a.jpg", "a.txt", "sub/c.txt", ".idx", "README"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    (shard,) = find_shards(str(tmp_path), Path("/"))
    assert shard.name == "."
    assert content(shard) == {
        "a": {"jpg": b"a.jpg", "txt": b"a.txt"},
        "b": {"txt": b"b.txt"},
        "sub/c": {"txt": b"sub/c.txt"},
    }


@pytest.mark.parametrize("cut", [100, 1300, 1536, 3000, 9000])
def test_a_cut_tar_keeps_its_readable_part(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "a.tar"
    write_shard(path, SAMPLES)
    path.write_bytes(path.read_bytes()[:cut])
    found = scan(Shard(LocalPlace(path), "a"))
    whole = dict(SAMPLES)
    for group in found.groups:
        for member in group.members:
            assert read_member(Shard(LocalPlace(path), "a"), group.key, member) == whole[group.key][member.name]
    assert len(found.groups) == len([n for n in range(5) if 2560 * n + 1536 - 300 <= cut]) or cut in (100, 1300)
    assert len(found.damage) == 1 and str(path) in found.damage[0] and str(cut) in found.damage[0]


def test_overwritten_header_loses_only_its_own_file(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    write_shard(path, SAMPLES)
    data = bytearray(path.read_bytes())
    second = scan(Shard(LocalPlace(path), "a")).groups[1].members[0].offset - 512
    data[second : second + 512] = os.urandom(512)
    path.write_bytes(data)
    found = scan(Shard(LocalPlace(path), "a"))
    assert [g.key for g in found.groups] == [key for key, _ in SAMPLES]
    assert [m.name for m in found.groups[1].members] == ["json"]  # 0.jpg, the first, is lost
    assert found.damage == (f"{path}: bytes {second} to {second + 512 + 1024} cannot be read",)
    data[second + 1536 :] = bytes([7]) * (len(data) - second - 1536)
    path.write_bytes(data)
    found = scan(Shard(LocalPlace(path), "a"))
    assert [g.key for g in found.groups] == ["000"]
    assert found.damage == (f"{path}: bytes {second} to {len(data)} cannot be read",)


@pytest.mark.parametrize("data", [b"", b"\x1f\x8b" + b"x" * 2000, b"no tar at all"])
def test_no_tar_at_all_is_damage_not_a_crash(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(data)
    found = scan(Shard(LocalPlace(tmp_path / "a.tar"), "a"))
    assert found.groups == () and len(found.damage) == 1


def test_a_shard_cut_after_it_was_scanned_gives_a_bad_sample(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    write_shard(path, SAMPLES)
    (*_, last) = scan(Shard(LocalPlace(path), "a")).groups
    os.truncate(path, 2000)
    with pytest.raises(BadSample, match="cut off"):
        read_member(Shard(LocalPlace(path), "a"), last.key, last.members[0])


def test_specs(tmp_path: Path) -> None:
    for name in ("x/0.tar", "x/1.tar", "x/2.tar", "y/0.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_shard(tmp_path / name, SAMPLES[:1])

    def names(spec: str | list[str]) -> list[str]:
        return [shard.name for shard in find_shards(spec, tmp_path)]

    assert names("x/{0..2}.tar") == names("x") == ["0", "1", "2"]
    assert names("x/1.tar") == names(str(tmp_path / "x/1.tar")) == ["1"]
    assert names(["x/{0,2}.tar", "y"]) == ["x/0", "x/2", "y/0"]
    assert names(".") == ["x/0", "x/1", "x/2", "y/0"]


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ("s3://bucket/0.tar", "addresses are not read here"),
        ("pipe:cat 0.tar", "never done"),
        ("none.tar", "does not exist"),
        ("nowhere", "nowhere"),
        ("{0..", "{0.."),
        ("a.tar.gz", "not a .tar"),
        ("empty", "holds no .tar"),
        (["a.tar", "./a.tar"], "named twice"),
        ("", "names nothing"),
    ],
)
def test_unusable_specs(tmp_path: Path, spec: str | list[str], problem: str) -> None:
    write_shard(tmp_path / "a.tar", SAMPLES[:1])
    (tmp_path / "a.tar.gz").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError) as error:
        find_shards(spec, tmp_path)
    assert problem in str(error.value)


def test_built_in_data_that_is_not_built_says_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megatron_qwen3vl.data.shards.resource", lambda name: tmp_path / name)
    with pytest.raises(UserError, match="does not exist; build it: .* data build data_recipes/domains/digits.yaml /"):
        find_shards("../built/digits/train", tmp_path / "data_recipes" / "mixtures")


def test_stamp_recognises_changes_and_copies(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", SAMPLES)
    shard = Shard(LocalPlace(tmp_path / "a.tar"), "a")
    stamp = take_stamp(shard)
    os.utime(shard.place.path, (1, 1))
    assert take_stamp(shard).digest == stamp.digest
    data = bytearray(shard.place.path.read_bytes())
    data[600] ^= 1
    shard.place.path.write_bytes(data)
    assert take_stamp(shard, stamp).digest != stamp.digest
