"""Hostile shards: nothing is run, nothing is written, nothing hangs, and every other sample is as it was."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from megatron_qwen3vl.data.index import MAGIC, parse_index
from megatron_qwen3vl.errors import UserError
from tests.faults import crafted, fuzz

ROOT = Path(__file__).parents[2]
# tar -> what becomes of its crafted sample; a tar that is not named here holds none
REASONS = {
    "pickles": "'pkl' is not named .jpg",
    "png_of_3600_megapixels": "image is too large to decode",
    "jpeg_of_3600_megapixels": "image is too large to decode",
    "webp_of_268_megapixels": "image is too large to decode",
    "png_text_bomb": "Decompressed data too large",
    "png_profile_bomb": "Decompressed data too large",
    "mp4_of_80_million_frames": "video claims 80000000 bytes of samples",
    "mp4_fragment_of_2_billion_frames": "video claims 21474836",
    "playlist_as_mp4": "video is not an MP4",
    "concat_as_mp4": "video is not an MP4",
    "session_as_mp4": "video is not an MP4",
    "json_100000_deep": ".json is not JSON: maximum recursion depth",
    "json_numbers": ".json is not JSON: Exceeds the limit",
    "json_twice_the_same": "twice",
    "text_of_100_million_characters": "txt has 100,000,000 bytes, more than 8,388,608",
    "a_picture_named_65537_times": "has 65537 images and frames, more than 65536",
}


def tree_of(folder: Path) -> dict[str, str]:
    """Every file and link of a folder, by its content."""
    found = {}
    for path in sorted(folder.rglob("*")):
        target = os.readlink(path) if path.is_symlink() else ""
        data = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        found[str(path.relative_to(folder))] = target + hashlib.sha256(data).hexdigest()
    return found


def test_crafted_tars_run_nothing_and_write_nothing_outside(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    data, below = canary / "a" / "data", canary / "a" / "b"
    for folder in (data, below):
        folder.mkdir(parents=True)
    (canary / "evil.txt").write_text("not overwritten")
    tars = crafted.tars(str(canary))
    assert len(tars) >= 20
    for name, content in tars.items():
        (data / f"{name}.tar").write_bytes(content)
    before = tree_of(canary)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.faults.watched", str(data)],
        cwd=below,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert crafted.SEEN not in done.stdout
    found = json.loads(done.stdout)
    assert found["seen"] == []
    after = {name: digest for name, digest in tree_of(canary).items() if not name.endswith(".tar.idx")}
    assert after == before
    for name, samples in found["read"].items():
        good = {key.rpartition("/")[2]: failure for key, failure in samples.items()}
        assert good.pop("good1") == good.pop("good2") == "", name
        if name in REASONS:
            assert list(good) == ["0"] and REASONS[name] in good["0"], (name, good)
    assert set(found["read"]) == set(tars) and set(REASONS) < set(tars)


def test_the_watch_sees(tmp_path: Path) -> None:
    """The hook of ``watched`` notices each kind of thing that it is there to notice."""
    script = """
import os, pickle, socket, subprocess, sys
from pathlib import Path
from tests.faults.crafted import Payload
from tests.faults.watched import Watch
watch = Watch(Path(sys.argv[1]))
sys.addaudithook(watch)
pickle.loads(pickle.dumps(Payload()))
subprocess.run(["true"])
socket.socket()
open("outside.txt", "w").close()
open("/etc/passwd").close()
os.symlink("a", "b")
os.mkdir("c")
open(os.path.join(sys.argv[1], "inside.txt"), "w").close()
print(len([s for s in watch.seen if "inside" in s]), *(seen.split()[0] for seen in watch.seen))
"""
    (tmp_path / "in").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-W", "ignore", "-c", script, str(tmp_path / "in")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    inside, *events = done.stdout.strip().splitlines()[-1].split()
    assert inside == "0"
    assert {"pickle.find_class", "subprocess.Popen", "socket.__new__", "open", "os.symlink", "os.mkdir"} <= set(events)


def test_fuzzed_files_change_no_other_sample(tmp_path: Path) -> None:
    """A fixed part of ``make fuzz``: no crash, no hang, bounded memory, every good sample the same bits."""
    result = fuzz.fuzz(tmp_path, count=120, seed=0)
    assert result.problems == ()
    assert result.accepted >= 0.8 * result.count
    assert result.peak_bytes < fuzz.MEMORY


def with_header(header: bytes) -> bytes:
    return MAGIC + len(header).to_bytes(8, "little") + header + bytes(64)


ARRAY = b'{"stamp": {}, "damage": [], "arrays": [{"name": "key_text", "type": "u1", "length": %s, "offset": %s}]}'
INDEXES = {
    "deep": with_header(b"[" * 200_000),
    "no header": MAGIC,
    "a header of any length": MAGIC + b"\xff" * 8 + b"{}",
    "wrong types": with_header(b'{"stamp": 3, "arrays": [3]}'),
    "an array behind the end": with_header(ARRAY % (b"1000000000000000000", b"0")),
    "an array before the beginning": with_header(ARRAY % (b"10", b"-1000")),
    "no number": with_header(ARRAY % (b"NaN", b"1e999")),
}


@pytest.mark.parametrize("name", INDEXES)
def test_a_crafted_index_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="is not a readable index"):
        parse_index(np.frombuffer(INDEXES[name], np.uint8), name)


def test_nothing_in_the_data_path_can_unpickle() -> None:
    """Processes of ours send one another sources and tasks by multiprocessing; no file ever meets a pickle."""
    modules = r"^\s*(import|from) (pickle|marshal|shelve|dill|joblib)"
    can = re.compile(rf"{modules}|torch\.load|np\.load|allow_pickle", re.MULTILINE)
    folder = ROOT / "megatron_qwen3vl" / "data"
    assert [path.name for path in folder.glob("*.py") if can.search(path.read_text())] == []
