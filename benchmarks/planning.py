"""Planning from an index of many samples: start-up, time of a global batch, memory of a process.

    python benchmarks/planning.py --samples 10000000 --shards 1000 [--lanes 512]

Makes shards that hold nothing (sparse files) with the indexes that real ones would have: log-normal lengths as in
packing.py, an image beside every third sample. Then, each in a process of its own: open the source without a catalogue
(it is made), open it with one, and plan global batches. Prints seconds, CPU seconds and memory, and what follows for
1,000 million samples from the parts measured.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np

from megatron_qwen3vl.config.load import load_config
from megatron_qwen3vl.config.schema import SourceConfig
from megatron_qwen3vl.data.catalogue import catalogue_key
from megatron_qwen3vl.data.index import ARRAYS, COUNTS, ShardIndex, read_index, write_index
from megatron_qwen3vl.data.lanes import Lane, Mixture
from megatron_qwen3vl.data.lengths import measure_shard
from megatron_qwen3vl.data.places import Stamp
from megatron_qwen3vl.data.shards import find_shards
from megatron_qwen3vl.data.source import Source, open_source
from megatron_qwen3vl.data.tokenizer import BUILT_IN, Tokenizer
from megatron_qwen3vl.data.vision import read_limits

MEDIAN, SIGMA, SHORTEST, LOOKAHEAD, STEPS = 600, 1.3, 16, 4, 12
IMAGE_EVERY = 3


def write_synthetic(folder: Path, samples: int, shards: int, tokenizer: Tokenizer) -> int:
    """Bytes of the indexes."""
    folder.mkdir(parents=True)
    written = 0
    for number in range(shards):
        rng = np.random.default_rng(number)
        count = samples * (number + 1) // shards - samples * number // shards
        text = np.exp(rng.normal(np.log(MEDIAN), SIGMA, count)).clip(SHORTEST, 1 << 20).astype("<i4")
        images = (np.arange(count) % IMAGE_EVERY == 0).astype(np.int64)
        files = 1 + images
        starts = np.concatenate([[0], np.cumsum(images)])
        arrays = {name: np.zeros(0, kind) for name, kind in ARRAYS.items()}
        keys = np.char.zfill(np.arange(count).astype("S8"), 8)
        arrays |= {
            "key_text": np.frombuffer(keys.tobytes(), "u1"),
            "key_ends": np.arange(8, 8 * count + 8, 8),
            "member_starts": np.concatenate([[0], np.cumsum(files)]),
            "member_text": np.tile(np.frombuffer(b"json0.jp", "u1"), (files.sum() + 1) // 2)[: 4 * files.sum()],
            "member_ends": np.arange(4, 4 * files.sum() + 4, 4),
            "member_offsets": np.arange(files.sum()) * 2048,
            "member_sizes": np.full(files.sum(), 1000),
            "visual_starts": starts,
            "visual_sizes": rng.integers(200, 1600, 2 * images.sum()) // 8 * 8,
            "visual_frames": np.zeros(images.sum()),
            "visual_fps": np.zeros(images.sum()),
            "visual_time_base": np.zeros(2 * images.sum()),
            "run_starts": np.zeros(images.sum() + 1),
            "is_document": np.ones(count),
            "break_starts": np.zeros(count + 1),
            "domain_of": np.full(count, -1),
            "reason_of": np.full(count, -1),
        }
        arrays = {name: array.astype(ARRAYS[name]) for name, array in arrays.items()}
        counts = (text, text[images > 0] // 2, np.zeros(0))
        arrays |= {
            f"{n}/{tokenizer.fingerprint}": a.astype("<i4") for n, a in zip(COUNTS, counts, strict=True)
        }
        tar = folder / f"{number:06d}.tar"
        with open(tar, "wb") as file:
            file.truncate(2048 * int(files.sum()) + 1024)
        status = tar.stat()
        stamp = Stamp(status.st_size, status.st_mtime_ns, hashlib.sha256(tar.name.encode()).hexdigest())
        write_index(ShardIndex(None, stamp, (), arrays), folder / f"{tar.name}.idx")
        written += (folder / f"{tar.name}.idx").stat().st_size
    return written


def timed(function: Callable[[], object]) -> tuple[object, dict[str, float]]:
    wall, cpu = time.perf_counter(), time.process_time()
    result = function()
    return result, {"s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}


def memory() -> dict[str, float]:
    """MB of this process: its own, and pages of files, which all processes share."""
    rows = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(rows[key].split()[0]) / 1024 for name, key in (("own", "RssAnon"), ("files", "RssFile"))}


def opening(folder: Path, length: int) -> Callable[[], Source]:
    config = SourceConfig("web", str(folder / "shards"), 1.0)
    tokenizer = Tokenizer((BUILT_IN / "tokenizer.json").read_text("utf-8"))
    model = load_config([]).model
    return lambda: open_source(config, folder, tokenizer, read_limits(None), model, folder / "run", length)


def open_in_child(folder: Path, length: int) -> dict[str, object]:
    open_it, before = opening(folder, length), memory()
    source, seconds = timed(open_it)
    assert isinstance(source, Source)
    return {"open": seconds, "before": before, "after": memory(), "rows": len(source), "split": source.num_split}


def plan_in_child(folder: Path, length: int, num_lanes: int) -> dict[str, object]:
    source = opening(folder, length)()
    before = memory()
    mixture, survey = timed(lambda: Mixture([source], [1.0], 1, "s1", num_lanes, length))
    assert isinstance(mixture, Mixture)
    lanes = [Lane(number, mixture, LOOKAHEAD * length, None) for number in range(num_lanes)]
    steps, samples = [], 0
    for _ in range(STEPS):
        packs, seconds = timed(lambda: [lane.next_pack()[0] for lane in lanes])
        assert isinstance(packs, list)
        steps.append(seconds)
        samples = sum(map(len, packs))
    return {
        "survey": survey,
        "first": steps[0],
        "next": {name: median(step[name] for step in steps[1:]) for name in ("s", "cpu_s")},
        "least": {name: min(step[name] for step in steps[1:]) for name in ("s", "cpu_s")},
        "samples": samples,
        "before": before,
        "after": memory(),
    }


def parts_in_child(folder: Path, length: int) -> dict[str, object]:
    """What opening consists of, a shard."""
    source = opening(folder, length)()
    shards, listing = timed(lambda: find_shards(str(folder / "shards"), folder))
    assert isinstance(shards, list)
    _, key = timed(lambda: catalogue_key("web", shards, source._rules))
    some = shards[:20]
    indexes, reading = timed(lambda: [read_index(shard.beside.path) for shard in some])
    assert isinstance(indexes, list)
    _, measuring = timed(lambda: [measure_shard(index, source._rules) for index in indexes])
    rows = np.random.default_rng(0).integers(0, len(source), 1000).tolist()
    _, naming = timed(lambda: [source.key(row) for row in rows])
    found = {"listing": (listing, len(shards)), "key": (key, len(shards))}
    per = found | {"index": (reading, len(some)), "rows": (measuring, len(some))}
    out: dict[str, object] = {name: seconds["cpu_s"] / count for name, (seconds, count) in per.items()}
    return out | {"samples_a_shard": len(indexes[0]), "name_of_a_sample": naming["cpu_s"] / len(rows)}


def child(folder: Path, *words: str) -> dict[str, object]:
    command = [sys.executable, "-W", "ignore", __file__, "--folder", str(folder), "--child", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=10_000_000)
    parser.add_argument("--shards", type=int, default=1000)
    parser.add_argument("--lanes", type=int, default=512)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--child", nargs="+")
    asked = parser.parse_args()
    if asked.child:
        what, *numbers = asked.child
        steps = {"open": open_in_child, "plan": plan_in_child, "parts": parts_in_child}
        print(json.dumps(steps[what](asked.folder, *map(int, numbers))))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer = Tokenizer((BUILT_IN / "tokenizer.json").read_text("utf-8"))
        size = write_synthetic(folder / "shards", asked.samples, asked.shards, tokenizer)
        print(f"{asked.samples:,} samples, {asked.shards:,} shards; indexes {size / asked.samples:.1f} bytes a sample")
        for length in (8192, 262144):
            made, found = child(folder, "open", str(length)), child(folder, "open", str(length))
            file = next((folder / "run").glob("*.catalogue"))
            print(f"\nsequence length {length:,}: {made['rows']:,} rows, {made['split']} divided")
            print(f"  catalogue, {file.stat().st_size / made['rows']:.2f} bytes a row: made {made['open']}")
            print(f"  found {found['open']}; memory {found['before']} -> {found['after']} MB")
            print(f"  planning {child(folder, 'plan', str(length), str(asked.lanes))}")
            if length == 8192:
                print(f"  parts, CPU seconds: {child(folder, 'parts', str(length))}")
            file.unlink()


if __name__ == "__main__":
    main()
