"""The built-in tokenizer with a model that fits it, and small samples."""

import io
import json
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from megatron_qwen3vl.config.schema import ModelConfig, SourceConfig, TextConfig, VisionConfig
from megatron_qwen3vl.data.index import ShardIndex, index_path, read_index
from megatron_qwen3vl.data.indexing import index_shards
from megatron_qwen3vl.data.shards import find_shards
from megatron_qwen3vl.data.source import Source, open_source
from megatron_qwen3vl.data.tokenizer import BUILT_IN, Tokenizer
from megatron_qwen3vl.data.vision import VisionLimits

LIMITS = VisionLimits(1024, 16384, 1024, 32768)
VISION = VisionConfig(2, 32, 64, 2, 3, 16, 2, 2, 32, 16, (0,), "gelu_pytorch_tanh", 0.02, 10000.0)


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer((BUILT_IN / "tokenizer.json").read_text("utf-8"))


def model(**changes: int) -> ModelConfig:
    """A model whose ids are the tokenizer's, but for ``changes``."""
    found = tokenizer()
    text = TextConfig(
        changes.get("vocab_size", 1024),
        32,
        64,
        2,
        2,
        1,
        16,
        "silu",
        1e-6,
        4096,
        0.02,
        1e5,
        (4, 2, 2),
        0,
        0,
        0,
        True,
        0.0,
    )
    return ModelConfig(
        text_config=text,
        vision_config=VISION,
        tie_word_embeddings=True,
        image_token_id=changes.get("image_token_id", found.image_pad),
        video_token_id=changes.get("video_token_id", found.video_pad),
        vision_start_token_id=found.vision_start,
        vision_end_token_id=found.vision_end,
    )


def picture(height: int, width: int, kind: str = "PNG", seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def document(*parts: object, **members: object) -> bytes:
    return json.dumps(
        {"content": [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]} | members
    ).encode()


def image_part(name: str) -> dict[str, object]:
    return {"type": "image", "image": name}


def video_part(*frames: str, fps: float = 2.0) -> dict[str, object]:
    return {"type": "video", "frames": list(frames), "fps": fps}


def source(folder, shards="data", limits: VisionLimits = LIMITS, cache=None, **settings) -> Source:
    config = SourceConfig(name="src", shards=shards, weight=1.0, **settings)
    return open_source(config, folder, tokenizer(), limits, model(), cache)


def build_indexes(path: Path, tokenizer_: Tokenizer) -> list[ShardIndex]:
    """``data index PATH`` in this process, and what it wrote."""
    results = index_shards(find_shards(str(path), Path.cwd()), tokenizer_, None, 1, lambda samples: None)
    assert [result.problem for result in results if result.problem] == []
    return [read_index(index_path(shard)) for shard in find_shards(str(path), Path("/"))]
