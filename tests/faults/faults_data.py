"""A small run for the fault tests: four stages of a few steps over a handful of pictures and texts."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

STEPS = 12
# figures of metrics.jsonl in which two equal runs differ
WALL_CLOCK = {"seconds", "data_seconds", "model_seconds", "optimizer_seconds", "save_seconds", "memory_bytes"}
OVERRIDES = [
    "run.seed=7",
    "log.wandb=disabled",
    "log.progress=false",
    "checkpoint.every=5",
    "checkpoint.keep=2",
    "data.workers=1",
    "validation.every=0",  # the demonstration's held-out shards may not have been built
    "model.text_config.num_hidden_layers=4",
    "model.text_config.hidden_size=32",
    "model.text_config.intermediate_size=64",
    "model.vision_config.out_hidden_size=32",
    "model.vision_config.hidden_size=32",
    "model.vision_config.intermediate_size=48",
    *(
        f"stages.s{i}.{key}={value}"
        for i, length in enumerate((128, 128, 192, 256))
        for key, value in {
            "steps": STEPS,
            "tokens": "null",
            "sequence_length": length,
            "global_batch_size": 2,
            "micro_batch_size": 1,
        }.items()
    ),
]


def write_shard(path: Path, samples: list[tuple[str, dict, dict[str, bytes]]]) -> None:
    with tarfile.open(path, "w") as tar:
        for key, content, media in samples:
            members = {f"{key}.json": json.dumps(content).encode()}
            members.update({f"{key}.{name}": data for name, data in media.items()})
            for name, data in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def picture(seed: int, size: int = 64) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 255, (size, size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    return buffer.getvalue()


def make_mixture(folder: Path, samples: int = 60) -> Path:
    pictures = [
        (
            f"{i:04d}",
            {"content": [{"type": "image", "image": "0.png"}, {"type": "text", "text": f"number {i * 37}"}],
             "domain": "caption"},
            {"0.png": picture(i)},
        )
        for i in range(samples)
    ]
    texts = [
        (f"{i:04d}", {"content": [{"type": "text", "text": f"line {i} " * (1 + i % 5)}], "domain": "text"}, {})
        for i in range(samples)
    ]
    write_shard(folder / "pictures.tar", pictures)
    write_shard(folder / "texts.tar", texts)
    mixture = {
        "sources": [
            {"name": "pictures", "shards": "pictures.tar", "weight": 0.7, "min_pixels": 4096, "max_pixels": 4096},
            {"name": "texts", "shards": "texts.tar", "weight": 0.3},
        ]
    }
    path = folder / "mixture.yaml"
    path.write_text(yaml.safe_dump(mixture))
    return path
