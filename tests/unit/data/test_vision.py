"""Pixels against transformers' torchvision processors (golden arrays), sizes against transformers' resize rules."""

import contextlib
import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from megatron_qwen3vl.data.vision import (
    PUBLISHED_LIMITS,
    VisionLimits,
    decode,
    image_grid,
    image_size,
    make_patches,
    processor_files,
    read_limits,
    video_grid,
    widest,
)
from megatron_qwen3vl.errors import BadSample, UserError
from tests.unit.data.shard_helpers import VISION, picture

GOLDEN = np.load(Path(__file__).parents[2] / "golden" / "images.npz")
NAMES = sorted({name.rsplit("/", 1)[0] for name in GOLDEN.files if "/" in name})


@pytest.mark.parametrize("name", NAMES)
def test_pixels_equal_torchvision_processors(name: str) -> None:
    files = sorted(f for f in GOLDEN.files if f.startswith(f"{name}/file"))
    frames = [decode(GOLDEN[f].tobytes()) for f in files]
    limits = PUBLISHED_LIMITS.override(*GOLDEN[f"{name}/limits"].tolist())
    size = frames[0].shape[:2]
    grid = (
        image_grid(*size, limits, VISION) if name.startswith("image") else video_grid(len(files), *size, limits, VISION)
    )
    assert [list(grid)] == GOLDEN[f"{name}/grid"].tolist()
    np.testing.assert_array_equal(make_patches(frames, grid, VISION), GOLDEN[f"{name}/patches"])


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 9), st.integers(10, 16), st.integers(0, 9))
def test_grids_equal_transformers_resize_rules(height: int, width: int, frames: int, low: int, more: int) -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize as image_rule
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize as video_rule

    pixels = {"min_pixels": 2**low, "max_pixels": 2 ** (low + more)}
    limits = VisionLimits(*pixels.values(), *pixels.values())

    def ours(call, *arguments):
        try:
            return tuple(16 * side for side in call(*arguments, limits, VISION)[1:])
        except BadSample:
            return None

    def theirs(rule, *arguments):
        try:
            return rule(*arguments, factor=32, **pixels)
        except ValueError:
            return None

    assert ours(image_grid, height, width) == theirs(image_rule, height, width)
    assert ours(video_grid, frames, height, width) == theirs(video_rule, max(frames, 2), height, width)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(9))
def test_size_from_header_is_size_after_decoding(kind: str, orientation: int) -> None:
    image = Image.new("RGB", (20, 10), (200, 10, 10))
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    buffer = io.BytesIO()
    image.save(buffer, kind, exif=exif)
    data = buffer.getvalue()
    assert image_size(data) == decode(data).shape[:2] == ((20, 10) if orientation >= 5 else (10, 20))


@pytest.mark.parametrize("mode", ["L", "P", "1", "RGBA", "LA", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    buffer = io.BytesIO()
    Image.new(mode, (9, 7)).save(buffer, "JPEG" if mode == "CMYK" else "PNG")
    pixels = decode(buffer.getvalue())
    assert pixels.shape == (7, 9, 3) and pixels.dtype == np.uint8


def test_turned_photograph_is_turned_as_transformers_turns_it(tmp_path: Path) -> None:
    from transformers.image_utils import load_image

    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.random.default_rng(1).integers(0, 256, (24, 40, 4), dtype=np.uint8)
    Image.fromarray(pixels, "RGBA").save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(
        decode((tmp_path / "turned.png").read_bytes()), np.asarray(load_image(str(tmp_path / "turned.png")))
    )


def bomb() -> bytes:
    """A PNG of a hundred bytes that says it has 10^10 pixels."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not a JPEG, PNG or WebP"),
        (b"GIF89a" + bytes(50), "not a JPEG, PNG or WebP"),
        (bomb(), "too large"),
        (picture(64, 64)[:40], "image"),
        (picture(64, 64, "JPEG")[:300], "image"),
    ],
)
def test_bad_image_is_named(data: bytes, reason: str) -> None:
    with pytest.raises(BadSample, match=reason):
        decode(data)


@settings(max_examples=150, deadline=None)
@given(st.data(), st.sampled_from(["PNG", "JPEG", "WEBP"]))
def test_damaged_bytes_never_crash(data: st.DataObject, kind: str) -> None:
    whole = bytearray(picture(20, 20, kind))
    for place in data.draw(st.lists(st.integers(0, len(whole) - 1), min_size=1, max_size=8)):
        whole[place] = data.draw(st.integers(0, 255))
    for read in (image_size, decode):
        with contextlib.suppress(BadSample):
            read(bytes(whole))


def test_limits_from_processor_files(tmp_path: Path) -> None:
    assert read_limits(None) == read_limits(tmp_path) == PUBLISHED_LIMITS
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"min_pixels": 7, "max_pixels": 99, "patch_size": 16})
    )
    (tmp_path / "video_preprocessor_config.json").write_text(
        json.dumps({"size": {"shortest_edge": 5, "longest_edge": 6}})
    )
    assert read_limits(tmp_path) == VisionLimits(7, 99, 5, 6)
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.4, 0.4, 0.4], "size": {"shortest_edge": "x"}})
    )
    (tmp_path / "video_preprocessor_config.json").write_text("{")
    with pytest.raises(UserError) as error:
        read_limits(tmp_path)
    assert len(error.value.problems) == 3


def test_source_limits_go_first() -> None:
    limits = VisionLimits(100, 1000, 10, 10000)
    assert limits.override(None, None) == limits
    assert limits.override(20, 50) == VisionLimits(20, 50, 20, 50)
    assert limits.override(None, 60) == VisionLimits(60, 60, 10, 60)
    assert limits.override(2000, None) == VisionLimits(2000, 2000, 2000, 10000)


def test_limits_of_several_sources_hold_all_their_pictures() -> None:
    small, large = PUBLISHED_LIMITS.override(1024, 4096), PUBLISHED_LIMITS.override(None, 20_000_000)
    both = widest([small, large])
    assert both == VisionLimits(1024, 20_000_000, 1024, 20_000_000)
    for limits, side in ((small, 32), (small, 64), (large, 256), (large, 4096)):
        assert image_grid(side, side, both, VISION) == image_grid(side, side, limits, VISION)


def test_processor_files_are_read_back_as_the_limits_they_were_made_from(tmp_path: Path) -> None:
    limits = VisionLimits(1024, 4096, 2048, 8192)
    for name, content in processor_files(limits, VISION).items():
        (tmp_path / name).write_bytes(content)
    assert read_limits(tmp_path) == limits
