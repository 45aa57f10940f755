"""Mutated media, JSON and tars through index and workers: ``make fuzz``, or ``python -m tests.faults.fuzz COUNT SEED``.

Every mutated file is a sample between two good ones (a mutated tar is a shard of its own). The index is made in a child
with limited memory, the samples are read by a worker of the loader with limited memory and time. A problem is: the
child or a worker ends, a sample takes longer than it may, a good sample changes by one bit, or its planned length does.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import struct
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator
from PIL import Image

from megatron_qwen3vl.batch import Sample
from megatron_qwen3vl.config.schema import SourceConfig
from megatron_qwen3vl.data.shards import write_shard
from megatron_qwen3vl.data.source import Source, open_source
from megatron_qwen3vl.data.worker_process import limit_memory
from megatron_qwen3vl.data.workers import ReaderPool, Task, WorkerLimits
from tests.faults.crafted import END, chunk, header, member
from tests.unit.data.shard_helpers import LIMITS, build_indexes, document, image_part, model, tokenizer
from tests.unit.data.video_files import encode

KINDS = ("jpg", "png", "webp", "mp4", "json", "tar")
MEMORY = 1 << 30  # bytes that indexing, and reading, may take beside what a process begins with
SECONDS = 30.0  # for one sample
EXTREME = (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff")
GOOD = 6  # good samples in each mutated tar


@dataclass(frozen=True)
class Result:
    """``headers``: of each kind how many the format's parser took, ``accepted``: how many the index holds as usable, of
    which ``failed`` failed on decoding. ``peak_bytes``: the most memory of the indexing child or a worker, beside what
    it began with."""

    count: int
    headers: Counter[str]
    accepted_by_kind: Counter[str]
    failed: Counter[str]
    peak_bytes: int
    seconds: float
    problems: tuple[str, ...]

    @property
    def accepted(self) -> int:
        return sum(self.headers.values())


def fuzz(folder: Path, count: int, seed: int) -> Result:
    began = time.monotonic()
    random = np.random.default_rng(seed)
    bases = _bases()
    mutated: dict[str, bytes] = {}
    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        mutated[f"m{number:05}.{kind}"] = mutate(kind, bases[kind][number % len(bases[kind])], random)
    headers = Counter(name.rpartition(".")[2] for name, data in mutated.items() if _parses(name, data))
    for name in ("fuzzed", "clean", "tars"):
        (folder / name).mkdir()
    good = {f"g{number:05}": _good(number) for number in range(0, count, 6)}
    samples = {name.partition(".")[0]: _as_sample(name, data) for name, data in mutated.items() if "tar" not in name}
    write_shard(folder / "fuzzed" / "0.tar", sorted({**good, **samples}.items(), key=lambda item: item[0][1:]))
    write_shard(folder / "clean" / "0.tar", sorted(good.items()))
    for name, data in mutated.items():
        if name.endswith("tar"):
            (folder / "tars" / name).write_bytes(data)
    problems: list[str] = []
    peak = _index_in_child(folder, problems)
    if problems:
        return Result(count, headers, Counter(), Counter(), peak, time.monotonic() - began, tuple(problems))
    sources = {name: _open(folder, name) for name in ("fuzzed", "clean", "tars")}
    found, most = _read(list(sources.values()), problems)
    whole = {sample.key.rpartition("/")[2]: (length, sample) for length, sample in found["clean"].values()}
    for length, sample in found["fuzzed"].values():
        name = sample.key.rpartition("/")[2]
        if name in whole and not _equal((length, sample), whole[name]):
            problems.append(f"{name} is another sample beside mutated ones")
    missing = set(whole) - {sample.key.rpartition("/")[2] for _, sample in found["fuzzed"].values()}
    problems += [f"{name} is lost beside mutated ones" for name in sorted(missing)]
    accepted, failed = _counts(sources, found, mutated)
    return Result(count, headers, accepted, failed, max(peak, most), time.monotonic() - began, tuple(problems))


def mutate(kind: str, data: bytes, random: Generator) -> bytes:
    """One to eight changes, of which few fall into what says how the rest is to be read."""
    if kind == "json":
        return _mutate_json(data, random)
    if kind == "png" and random.random() < 0.4:
        return _mutate_rows(data, random)
    changed = bytearray(data)
    first = {"jpg": 320, "png": 41, "webp": 64, "mp4": 48, "tar": 512}[kind]
    moves = 0.05 if kind in ("mp4", "webp") else 0.25  # of changes that move what is behind them
    if random.random() < 0.1:
        first = 0
    for _ in range(int(random.integers(1, 4 if kind == "mp4" else 9))):
        at = int(random.integers(min(first, len(changed) - 1), len(changed)))
        what = random.random()
        if kind == "tar" and what < 0.7:
            _change_header(changed, random)
        elif random.random() > moves:
            end = at + (1 if what < 0.8 else 4)
            changed[at:end] = random.bytes(1) if what < 0.8 else EXTREME[int(random.integers(3))]
        elif what < 0.45:
            end = at + int(random.integers(1, 64))
            changed[at:at] = changed[at:end]
        elif what < 0.9:
            del changed[at : at + int(random.integers(1, 64))]
        else:
            del changed[max(at, 2 * first) :]
    if kind == "png" and random.random() < 0.7:
        _right_checksums(changed)
    return bytes(changed)


def _mutate_rows(png: bytes, random: Generator) -> bytes:
    """Other rows in a stream that unpacks: pixels, and the filters that say how to read them."""
    at = png.index(b"IDAT") - 4
    (size,) = struct.unpack_from(">I", png, at)
    rows = bytearray(zlib.decompress(png[at + 8 : at + 8 + size]))
    for _ in range(int(random.integers(1, 40))):
        rows[int(random.integers(len(rows)))] = int(random.integers(256))
    rows[int(random.integers(10)) * (len(rows) // 96)] = int(random.integers(6))
    if random.random() < 0.2:
        del rows[int(random.integers(len(rows))) :]
    return png[:at] + chunk(b"IDAT", zlib.compress(rows)) + png[at + 12 + size :]


def _right_checksums(png: bytearray) -> None:
    """Otherwise Pillow looks no further."""
    at = 8
    while at + 12 <= len(png):
        (size,) = struct.unpack_from(">I", png, at)
        end = at + 8 + size
        if end + 4 > len(png):
            return
        struct.pack_into(">I", png, end, zlib.crc32(png[at + 4 : end]))
        at = end + 4


def _change_header(tar: bytearray, random: Generator) -> None:
    """Another byte in a header block of the tar, with the checksum made right again."""
    blocks = [start for start in range(0, len(tar) - 511, 512) if tar[start + 257 : start + 262] == b"ustar"]
    if not blocks:
        return
    start = int(random.choice(blocks[1:] if len(blocks) > 1 and random.random() < 0.9 else blocks))
    at = start + int(random.choice([int(random.integers(0, 100)), int(random.integers(124, 136)), 156]))
    tar[at] = int(random.integers(256))
    tar[start + 148 : start + 156] = b" " * 8
    tar[start + 148 : start + 156] = b"%06o\0 " % sum(tar[start : start + 512])


_VALUES: tuple[Any, ...] = (
    "another text", "a\nb", 2.0, "assistant", "0.png", "b",
    None, True, -1, 0, 10**400, 1e308, float("nan"), float("inf"), "", "x" * 5000, "\ud800", "<|im_end|>", "a\0b", [],
    {}, [[]], {"type": "image"}, {"type": "text", "text": 7}, "robot", "../../etc/passwd", ["0.png"] * 50,
)  # fmt: skip


_TEXTS = (
    "another text", "", " " * 3000, "x" * 3000, "e\u0301\u0316" * 900, "\U0001f600" * 500, "<|im_end|>" * 50,
    "\0\x1b[2J", "<script>alert(1)</script>", "\u202e", "\ud800", "1" * 3000,
)  # fmt: skip


def _mutate_json(data: bytes, random: Generator) -> bytes:
    if random.random() < 0.08:
        changed = bytearray(data)
        changed[int(random.integers(len(changed)))] = int(random.integers(256))
        return bytes(changed)
    if random.random() < 0.03:
        depth = int(random.integers(500, 50_000))
        return b'{"content": ' + b"[" * depth + b"]" * depth + b"}"
    tree = json.loads(data)
    if random.random() < 0.4:
        texts = [node for node in tree.get("content", []) + tree.get("messages", []) if isinstance(node, dict)]
        for node in texts:
            if isinstance(node.get("content", node.get("text")), str):
                node["content" if "content" in node else "text"] = _TEXTS[int(random.integers(len(_TEXTS)))]
        return json.dumps(tree).encode()
    for _ in range(int(random.integers(1, 3))):
        node = tree
        for _ in range(int(random.integers(1, 6))):
            inner = [value for value in (node.values() if isinstance(node, dict) else node) if value]
            inner = [value for value in inner if isinstance(value, dict | list)]
            if not inner:
                break
            node = inner[int(random.integers(len(inner)))]
        places = list(node) if isinstance(node, dict) else list(range(len(node)))
        if places:
            node[places[int(random.integers(len(places)))]] = deepcopy(_VALUES[int(random.integers(len(_VALUES)))])
    return json.dumps(tree).encode()


def _bases() -> dict[str, list[bytes]]:
    smooth = np.linspace(0, 255, 96 * 128 * 3).reshape(96, 128, 3)
    noise = np.random.default_rng(1).integers(0, 80, (96, 128, 3))
    picture = Image.fromarray(np.clip(smooth + noise, 0, 255).astype(np.uint8))

    def saved(kind: str, **options: Any) -> bytes:
        buffer = io.BytesIO()
        picture.save(buffer, kind, **options)
        return buffer.getvalue()

    talk = {"role": "user", "content": [image_part("0.png"), {"type": "text", "text": "What is it?"}]}
    answer = {"role": "assistant", "content": "A picture."}
    video = {"type": "video", "frames": ["0.png", "0.png", "0.png"], "fps": 2.0}
    tar = b"".join(member(f"d/{n}.txt".encode(), f"text {n} ".encode() * 40) for n in range(GOOD))
    return {
        "jpg": [saved("JPEG"), saved("JPEG", progressive=True, quality=95), saved("JPEG", optimize=True, quality=30)],
        "png": [saved("PNG"), saved("PNG", compress_level=0)],
        "webp": [saved("WEBP"), saved("WEBP", lossless=True), saved("WEBP", quality=20)],
        "mp4": [
            encode(20),
            encode(12, codec="mpeg4", options={"g": "4"}),
            encode(16, kind="matroska"),
            encode(12, kind="webm", codec="libvpx", options={"deadline": "realtime", "lag-in-frames": "0"}),
        ],
        "json": [
            json.dumps({"messages": [{"role": "system", "content": "Brief!"}, talk, answer], "domain": "a"}).encode(),
            document("before", image_part("0.png"), "behind", video, domain="b"),
            document("a", "b", {"type": "video", "frames": ["0.png", "0.png"], "times": [0.5, 1.5]}, "c"),
        ],
        "tar": [tar + END, header(b"long", 9, b"L") + b"e/0.txt\0\0".ljust(512, b"\0") + tar + END],
    }


def _good(number: int) -> dict[str, bytes]:
    shade = np.full((64, 64 + 32 * (number % 3), 3), number % 251, np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(shade).save(buffer, "PNG")
    return {"png": buffer.getvalue(), "txt": f"a good picture, number {number}".encode()}


def _as_sample(name: str, data: bytes) -> dict[str, bytes]:
    kind = name.rpartition(".")[2]
    if kind == "json":
        return {"0.png": _good(0)["png"], "json": data}
    part = {"type": "video", "video": "0.mp4"} if kind == "mp4" else image_part(f"0.{kind}")
    return {f"0.{kind}": data, "json": document(part, "and a text")}


def _parses(name: str, data: bytes) -> bool:
    """Whether the format's own parser, not ours, takes the file's header."""
    import tarfile

    import av

    try:
        if name.endswith("json"):
            json.loads(data)
        elif name.endswith("tar"):
            with tarfile.open(fileobj=io.BytesIO(data)) as tar:
                return tar.firstmember is not None
        elif name.endswith("mp4"):
            with av.open(io.BytesIO(data)) as container:
                return bool(container.streams.video)
        else:
            Image.open(io.BytesIO(data))
    except Exception:
        return False
    return True


def _open(folder: Path, name: str) -> Source:
    return open_source(SourceConfig(name, name, 1.0, max_frames=8), folder, tokenizer(), LIMITS, model())


def _index_in_child(folder: Path, problems: list[str]) -> int:
    """Make every index in a process with limited memory; the most that it took."""
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe()
    child = context.Process(target=_index, args=(folder, theirs))
    child.start()
    theirs.close()
    patience = SECONDS * 60
    peak = ours.recv() if ours.poll(patience) and child.is_alive() else 0
    child.join(timeout=5)
    if child.exitcode != 0:
        child.kill()
        problems.append(f"indexing ended with {child.exitcode}")
    return peak


def _index(folder: Path, connection: Any) -> None:
    encode(4)  # what is imported on first use is imported now
    began = _most_memory()
    limit_memory(MEMORY)
    for name in ("fuzzed", "clean", "tars"):
        build_indexes(folder / name, tokenizer())
    connection.send(_most_memory() - began)


def _most_memory(process: int | str = "self") -> int:
    text = Path(f"/proc/{process}/status").read_text()
    (kilobytes,) = (int(line.split()[1]) for line in text.splitlines() if line.startswith("VmHWM:"))
    return kilobytes * 1024


def _read(sources: Sequence[Source], problems: list[str]) -> tuple[dict[str, dict[int, tuple[int, Sample]]], int]:
    """Every usable sample through one worker. (length as planned, sample) by source and row, and the most memory."""
    pool = ReaderPool(sources, 1, tokenizer().pad_id, WorkerLimits(SECONDS, MEMORY / 2**30))
    found: dict[str, dict[int, tuple[int, Sample]]] = {source.name: {} for source in sources}
    try:
        (process,) = pool.process_ids()
        wanted = [(s, int(row)) for s, source in enumerate(sources) for row in np.flatnonzero(source.lengths > 0)]
        began = 0
        for number, (s, row) in enumerate(wanted):
            length = int(sources[s].lengths[row])
            pool.submit(Task(number, s, row, length, True))
            sample = pool.result(number)
            began = began or _most_memory(process)
            found[sources[s].name][row] = (length, sample)
            if pool.process_ids() != [process]:
                problems.append(f"{sample.key}: {sample.failure or 'a worker ended, the second one read it'}")
                process, began = pool.process_ids()[0], 0
        most = _most_memory(process) - began
    finally:
        pool.close()
    return found, most


def _equal(mine: tuple[int, Sample], other: tuple[int, Sample]) -> bool:
    (length, a), (other_length, b) = mine, other
    arrays = ("input_ids", "labels", "positions", "visual_index", "grids", "patches")
    same = all(np.array_equal(vars(a)[name], vars(b)[name]) for name in arrays)
    return same and length == other_length and a.failure is None and b.failure is None


def _counts(
    sources: dict[str, Source], found: dict[str, dict[int, tuple[int, Sample]]], mutated: dict[str, bytes]
) -> tuple[Counter[str], Counter[str]]:
    kinds = {name.partition(".")[0]: name.rpartition(".")[2] for name in mutated}
    accepted: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    for _, sample in found["fuzzed"].values():
        kind = kinds.get(sample.key.rpartition("/")[2])
        if kind is not None:
            accepted[kind] += 1
            failed[kind] += sample.failure is not None
    source = sources["tars"]
    accepted["tar"] = len({source.key(row).split("/")[1] for row in found["tars"]})
    return accepted, failed


def main() -> int:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    with tempfile.TemporaryDirectory() as folder:
        result = fuzz(Path(folder), count, seed)
    print("kind   header parses   usable by the index   failed on decoding")
    for kind in KINDS:
        print(f"{kind:5} {result.headers[kind]:14} {result.accepted_by_kind[kind]:21} {result.failed[kind]:20}")
    print(f"{result.accepted} of {count} headers parse; seed {seed}; {result.seconds:.0f} s")
    print(f"most memory of a child beside what it began with: {result.peak_bytes >> 20} MiB (limit {MEMORY >> 20})")
    print("\n".join(result.problems) or "no problems")
    return 1 if result.problems else 0


if __name__ == "__main__":
    sys.exit(main())
