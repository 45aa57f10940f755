"""Encoded images -> uint8 patches and their grid, equal to transformers' torchvision processors.

    bytes -> check the header's size -> decode, EXIF-turned, RGB -> resize (smart_resize, antialiased bicubic on uint8)
          -> patches [P, C] in 2x2 blocks -> (the model normalises on its device: (x/255 - 0.5)/0.5)

Sizes need only the header (``image_size``, ``image_grid``, ``video_grid``), so packs are planned without decoding.
Sources of the rules: transformers 5.23 ``image_processing_qwen2_vl.smart_resize`` and ``patchify``,
``video_processing_qwen3_vl.smart_resize`` and ``patchify``, ``image_utils.load_image`` (EXIF orientation is applied,
alpha is dropped by convert("RGB")).
"""

from __future__ import annotations

import io
import json
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps

from megatron_qwen3vl.config.schema import VisionConfig
from megatron_qwen3vl.data.limits import MAX_IMAGE_PIXELS
from megatron_qwen3vl.errors import BadSample, UserError

MAX_ASPECT = 200  # of smart_resize
_FORMATS = ("JPEG", "PNG", "WEBP")
# bytes -> a type of that size: copying moves whole rows of a patch instead of bytes, in a quarter of the time
_ROWS = {16: torch.complex128, 8: torch.int64, 4: torch.int32}
_PNG_ORIENTATION_MARKS = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")


@dataclass(frozen=True)
class VisionLimits:
    """Pixels after resizing: of one image, and of one video over all its frames."""

    image_min_pixels: int
    image_max_pixels: int
    video_min_pixels: int
    video_max_pixels: int

    def override(self, min_pixels: int | None, max_pixels: int | None) -> VisionLimits:
        """A source's own limits, for its images and for its videos. One given alone moves the other along."""
        image = _moved(self.image_min_pixels, self.image_max_pixels, min_pixels, max_pixels)
        return VisionLimits(*image, *_moved(self.video_min_pixels, self.video_max_pixels, min_pixels, max_pixels))


def widest(limits: Sequence[VisionLimits]) -> VisionLimits:
    """What every picture and video of sources with these limits keeps: the smallest minima, the largest maxima."""
    return VisionLimits(
        image_min_pixels=min(each.image_min_pixels for each in limits),
        image_max_pixels=max(each.image_max_pixels for each in limits),
        video_min_pixels=min(each.video_min_pixels for each in limits),
        video_max_pixels=max(each.video_max_pixels for each in limits),
    )


def processor_files(limits: VisionLimits, vision: VisionConfig) -> dict[str, bytes]:
    """preprocessor_config.json and video_preprocessor_config.json that say to transformers what is done here."""
    common = {
        "patch_size": vision.patch_size,
        "temporal_patch_size": vision.temporal_patch_size,
        "merge_size": vision.spatial_merge_size,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "processor_class": "Qwen3VLProcessor",
    }
    image = {
        **common,
        "image_processor_type": "Qwen2VLImageProcessorFast",
        "size": {"shortest_edge": limits.image_min_pixels, "longest_edge": limits.image_max_pixels},
    }
    video = {
        **common,
        "video_processor_type": "Qwen3VLVideoProcessor",
        "size": {"shortest_edge": limits.video_min_pixels, "longest_edge": limits.video_max_pixels},
    }
    files = {"preprocessor_config.json": image, "video_preprocessor_config.json": video}
    return {name: (json.dumps(content, indent=2) + "\n").encode() for name, content in files.items()}


def _moved(low: int, high: int, new_low: int | None, new_high: int | None) -> tuple[int, int]:
    if new_low is not None:
        return new_low, max(high, new_low) if new_high is None else new_high
    return (low, high) if new_high is None else (min(low, new_high), new_high)


# The preprocessor_config.json and video_preprocessor_config.json published with every Qwen3-VL model.
PUBLISHED_LIMITS = VisionLimits(
    image_min_pixels=65_536, image_max_pixels=16_777_216, video_min_pixels=4_096, video_max_pixels=25_165_824
)


def read_limits(folder: str | Path | None) -> VisionLimits:
    """Limits from the processor files in a Hugging Face folder; what is absent has the published value.

    Raises:
        UserError: a file is not JSON, or asks for a normalisation or a resize rule that is not done here.
    """
    if folder is None:
        return PUBLISHED_LIMITS
    problems: list[str] = []
    image = _read_processor(Path(folder) / "preprocessor_config.json", problems)
    video = _read_processor(Path(folder) / "video_preprocessor_config.json", problems)
    published = PUBLISHED_LIMITS
    limits = VisionLimits(
        image_min_pixels=image.get("shortest_edge", published.image_min_pixels),
        image_max_pixels=image.get("longest_edge", published.image_max_pixels),
        video_min_pixels=video.get("shortest_edge", published.video_min_pixels),
        video_max_pixels=video.get("longest_edge", published.video_max_pixels),
    )
    if limits.image_min_pixels > limits.image_max_pixels or limits.video_min_pixels > limits.video_max_pixels:
        problems.append(f"{folder}: the processor files' shortest_edge is larger than longest_edge; mend `size`")
    if problems:
        raise UserError(problems)
    return limits


def _read_processor(path: Path, problems: list[str]) -> dict[str, int]:
    if not path.is_file():
        return {}
    try:
        tree = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        problems.append(f"{path}: not readable JSON ({error}); copy it again from the model's folder")
        return {}
    if not isinstance(tree, dict):
        problems.append(f"{path}: not a JSON object; copy it again from the model's folder")
        return {}
    wanted = {
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "cap_pixels_per_frame": False,
    }
    for key, value in wanted.items():
        if tree.get(key) is not None and tree[key] != value:
            problems.append(f"{path}: {key}={tree[key]} but only {value} can be trained with; use the model's own file")
    size = tree.get("size")
    edges = dict(size) if isinstance(size, dict) else {}
    # Older processor files name the same limits min_pixels and max_pixels.
    for old, new in (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge")):
        if tree.get(old) is not None:
            edges[new] = tree[old]
    edges = {key: edges[key] for key in ("shortest_edge", "longest_edge") if edges.get(key) is not None}
    for key, value in edges.items():
        if type(value) is not int or value < 1:
            problems.append(f"{path}: size.{key}={value!r} is not a number of pixels; mend it")
    return {key: value for key, value in edges.items() if type(value) is int}


def image_size(data: bytes) -> tuple[int, int]:
    """(height, width) as ``decode`` will give them, from the header.

    Raises:
        BadSample: not a JPEG, PNG or WebP, or so large that decoding it would fill the memory.
    """
    height, width, orientation = stored_size(data)
    return (width, height) if orientation in (5, 6, 7, 8) else (height, width)


def stored_size(data: bytes) -> tuple[int, int, int]:
    """(height, width) as stored and the EXIF orientation, 1 to 8, by which ``decode`` turns them; from the header.

    Raises:
        BadSample: as ``image_size``.
    """
    image = _open(data)
    width, height = image.size
    try:
        # Pillow decodes a whole PNG to look for EXIF behind the pixels; the chunk's name tells whether there is any.
        if image.format == "PNG" and not any(mark in data for mark in _PNG_ORIENTATION_MARKS):
            return height, width, 1
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's parsers raise anything on hostile files
        raise BadSample(f"image has unreadable EXIF: {error}") from error
    return height, width, orientation if orientation in range(1, 9) else 1


def decode(data: bytes) -> np.ndarray:
    """uint8 [height, width, 3], turned by its EXIF orientation.

    Raises:
        BadSample: not a JPEG, PNG or WebP, cut off, corrupt, or too large.
    """
    image = _open(data)
    try:
        ImageOps.exif_transpose(image, in_place=True)
        return np.array(image if image.mode == "RGB" else image.convert("RGB"))
    except MemoryError:  # the worker's affair, not this picture's alone
        raise
    except Exception as error:  # Pillow's decoders raise OSError, ValueError, SyntaxError, struct.error and others
        raise BadSample(f"image cannot be decoded: {error}") from error


def _open(data: bytes) -> Image.Image:
    """Reads the header only; Pillow's own check of the size is made an error from its first level on (89M pixels)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
        except MemoryError:
            raise
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise BadSample(f"image is too large to decode: {error}") from error
        except Image.UnidentifiedImageError as error:
            raise BadSample("image is not a JPEG, PNG or WebP file") from error
        except Exception as error:
            raise BadSample(f"image header cannot be read: {error}") from error
    if image.size[0] * image.size[1] > MAX_IMAGE_PIXELS:  # Pillow's own limit can be changed by anybody
        raise BadSample(f"image is too large to decode: {image.size[0]} x {image.size[1]} pixels")
    return image


def image_grid(height: int, width: int, limits: VisionLimits, vision: VisionConfig) -> tuple[int, int, int]:
    """(1, h, w) in patches of an image of ``height`` x ``width`` pixels after the resize rule for images.

    Raises:
        BadSample: one side is more than 200 times the other.
    """
    _check_aspect(height, width)
    factor = vision.patch_size * vision.spatial_merge_size
    sides = _within(height, width, 1, 1, factor, limits.image_min_pixels, limits.image_max_pixels)
    return 1, sides[0] // vision.patch_size, sides[1] // vision.patch_size


def video_grid(
    num_frames: int, height: int, width: int, limits: VisionLimits, vision: VisionConfig
) -> tuple[int, int, int]:
    """(t, h, w) of a video of equal frames: t temporal groups of h x w patches, after the resize rule for videos.

    transformers refuses fewer frames than a group holds; here the frame is repeated, as an odd last one is.

    Raises:
        BadSample: one side is more than 200 times the other.
    """
    group = vision.temporal_patch_size
    frames = max(num_frames, group)
    factor = vision.patch_size * vision.spatial_merge_size
    if height < factor or width < factor:
        scale = max(factor / height, factor / width)
        height, width = int(height * scale), int(width * scale)
    _check_aspect(height, width)
    filled = round(frames / group) * group
    sides = _within(height, width, frames, filled, factor, limits.video_min_pixels, limits.video_max_pixels)
    return -(-frames // group), sides[0] // vision.patch_size, sides[1] // vision.patch_size


def _check_aspect(height: int, width: int) -> None:
    if min(height, width) < 1:
        raise BadSample(f"image of {width} x {height} pixels is empty")
    if max(height, width) / min(height, width) > MAX_ASPECT:
        raise BadSample(f"image of {width} x {height} pixels is more than {MAX_ASPECT} times as long as wide")


def _within(
    height: int, width: int, frames: int, filled: int, factor: int, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
    """smart_resize: sides that are multiples of ``factor``, the whole of ``filled`` frames within the limits."""
    rounded = round(height / factor) * factor, round(width / factor) * factor
    volume = filled * rounded[0] * rounded[1]
    if volume > max_pixels:
        shrink = math.sqrt(frames * height * width / max_pixels)
        return (
            max(factor, math.floor(height / shrink / factor) * factor),
            max(factor, math.floor(width / shrink / factor) * factor),
        )
    if volume < min_pixels:
        grow = math.sqrt(min_pixels / (frames * height * width))
        return math.ceil(height * grow / factor) * factor, math.ceil(width * grow / factor) * factor
    return rounded


def make_patches(frames: Sequence[np.ndarray], grid: tuple[int, int, int], vision: VisionConfig) -> np.ndarray:
    """Resize to the grid and cut.

    Args:
        frames: one image, or the frames of a video, uint8 [height, width, 3] of equal size.
        grid: (t, h, w) from ``image_grid`` or ``video_grid``; missing frames repeat the last one.

    Returns:
        uint8 [t * h * w, C]: by group, then 2x2 blocks row by row, then the patches of a block; values of a patch in
        channel x time x row x column order.
    """
    groups, rows, columns = grid
    size, merge, depth = vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size
    # the fast kernel wants the channels last, as they come
    pixels = torch.from_numpy(frames[0][None] if len(frames) == 1 else np.stack(frames)).permute(0, 3, 1, 2)
    resized = _resize(pixels, rows * size, columns * size).contiguous()  # [frames, 3, height, width]
    row = _ROWS.get(size, torch.uint8)  # one row of a patch at a time
    rows_of_patches = resized.view(row)
    missing = groups * depth - len(frames)
    if len(frames) == 1:
        rows_of_patches = rows_of_patches.expand(groups * depth, -1, -1, -1)
    elif missing:
        rows_of_patches = torch.cat([rows_of_patches, rows_of_patches[-1:].expand(missing, -1, -1, -1)])
    channels, width = resized.shape[1], size // row.itemsize
    blocks = rows_of_patches.reshape(
        groups, depth, channels, rows // merge, merge, size, columns // merge, merge, width
    )
    # -> group, block row, block column, row in block, column in block, channel, time, row, column
    ordered = blocks.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).contiguous().view(torch.uint8)
    return ordered.reshape(groups * rows * columns, channels * depth * size * size).numpy()


def resize_frame(frame: np.ndarray, grid: tuple[int, int, int], vision: VisionConfig) -> np.ndarray:
    """uint8 [height, width, 3] -> the same in the size of the grid, as ``make_patches`` would resize it."""
    pixels = torch.from_numpy(frame[None]).permute(0, 3, 1, 2)
    resized = _resize(pixels, grid[1] * vision.patch_size, grid[2] * vision.patch_size)
    return resized.permute(0, 2, 3, 1).contiguous()[0].numpy()


def _resize(pixels: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """What torchvision.transforms.v2.functional.resize does to uint8 with antialiased bicubic."""
    if pixels.shape[-2:] == (height, width):
        return pixels
    return torch.nn.functional.interpolate(
        pixels, size=(height, width), mode="bicubic", align_corners=False, antialias=True
    )
