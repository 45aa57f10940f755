"""What shards behind HTTP cost: requests and bytes to index a tar, to start a run, and to read its samples.

    PYTHONPATH=.:tests/faults python benchmarks/remote_shards.py

Samples are a JPEG with a caption; the server is the tests' own, on loopback, without faults. A table row for each size.
"""

from __future__ import annotations

import io
import json
import tempfile
from pathlib import Path

import numpy as np
from faulty_server import FaultyServer
from PIL import Image

from megatron_qwen3vl.config.schema import SourceConfig, StorageConfig
from megatron_qwen3vl.data.indexing import index_shards
from megatron_qwen3vl.data.shards import find_shards, write_shard
from megatron_qwen3vl.data.source import open_source
from tests.unit.data.shard_helpers import LIMITS, model, tokenizer

STORAGE = StorageConfig(10, 0.2, 20.0, None, True, None, None, 10**9, 0)
READ = 50  # samples


def jpeg(side: int, seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def measure(side: int, count: int) -> str:
    caption = json.dumps({"content": [{"type": "image", "image": "jpg"}, {"type": "text", "text": "word " * 60}]})
    pictures = [jpeg(side, seed) for seed in range(8)]
    with tempfile.TemporaryDirectory() as name, FaultyServer(Path(name)) as server:
        folder, indexes = Path(name), Path(name) / "indexes"
        samples = ((f"{i:06d}", {"json": caption.encode(), "jpg": pictures[i % 8]}) for i in range(count))
        write_shard(folder / "0.tar", samples)
        size = (folder / "0.tar").stat().st_size

        def spent() -> tuple[int, int]:
            found = len(server.requests), sum(request.sent for request in server.requests)
            server.requests.clear()
            return found

        spec = f"{server.address}/0.tar"
        index_shards(find_shards(spec, folder, STORAGE), tokenizer(), indexes, 1, lambda samples: None)
        index = spent()
        source = open_source(
            SourceConfig("s", spec, 1.0), folder, tokenizer(), LIMITS, model(), indexes, storage=STORAGE
        )
        start = spent()
        for i in np.random.default_rng(0).permutation(count)[:READ].tolist():
            assert source.read(i, pixels=True).failure is None
        read = spent()
    return (
        f"| {size / count / 1000:,.0f} kB | {count:,} | {index[0]:,} | {index[0] / count:.2f} | {index[1] / size:.1%} "
        f"| {start[0]} / {start[1]} | {read[0] / READ:.2f} | {read[1] / READ / (size / count):.3f} |"
    )


if __name__ == "__main__":
    print("| sample | samples | requests to index | a sample | share of bytes | start | a read: requests | bytes |")
    for side, count in ((64, 3000), (224, 1000), (512, 300), (1024, 100)):
        print(measure(side, count), flush=True)
