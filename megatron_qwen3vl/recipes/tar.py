"""Shards as plain tar files."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from megatron_qwen3vl.recipes.record import Record


def write_shards(folder: Path, records: Iterator[Record], samples_per_shard: int) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[Path] = []
    while batch := list(islice(records, samples_per_shard)):
        shards.append(folder / f"{len(shards):05d}.tar")
        with tarfile.open(shards[-1], "w") as tar:
            for record in batch:
                files = {"json": json.dumps(record.body).encode(), **record.media}
                for name, data in files.items():
                    info = tarfile.TarInfo(f"{record.key}.{name}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return shards
