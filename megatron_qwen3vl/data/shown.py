"""What the model sees of a stored image or video: which frames, how large, at how many positions.

A pure function of what the index keeps, so a plan and what is read later agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_qwen3vl.config.schema import VisionConfig
from megatron_qwen3vl.data.compose import Composition, Picture, Video
from megatron_qwen3vl.data.examine import Visual
from megatron_qwen3vl.data.sampling import Sampling
from megatron_qwen3vl.data.tokenizer import Tokenizer
from megatron_qwen3vl.data.vision import VisionLimits, image_grid, video_grid
from megatron_qwen3vl.errors import BadSample

Grid = tuple[int, int, int]


@dataclass(frozen=True)
class Rules:
    """What turns a stored sample into tokens and patches."""

    tokenizer: Tokenizer
    limits: VisionLimits
    vision: VisionConfig
    timestamps: str
    sampling: Sampling
    split: bool = False  # documents longer than the sampling's sequence are divided into parts


@dataclass(frozen=True)
class Shown:
    """What the model sees of an image or video as stored: all of an image or a list, some frames of a video file.

    ``times`` are the frames' seconds, () for an image; ``ticks`` those of a file's frames, () else.
    """

    height: int
    width: int
    times: tuple[float, ...]
    ticks: tuple[int, ...]


def show_all(visuals: Sequence[Visual], rules: Rules) -> list[Shown]:
    """What is shown of all images and videos of a sample."""
    num_files = sum(visual.is_file for visual in visuals)
    return [show(visual, num_files, rules) for visual in visuals]


def show(visual: Visual, num_files: int, rules: Rules) -> Shown:
    if not visual.frames:
        return Shown(visual.height, visual.width, (), ())
    if not visual.is_file:
        return Shown(visual.height, visual.width, tuple(visual.times.tolist()), ())
    times = visual.times
    places = rules.sampling.choose(
        times,
        rules.vision.temporal_patch_size,
        num_files,
        lambda frames: visual_figures(frames, visual.height, visual.width, rules)[0],
    )
    return Shown(visual.height, visual.width, tuple(times[places].tolist()), tuple(visual.ticks[places].tolist()))


def check_same(composition: Composition, shown: Sequence[Shown]) -> None:
    """The shard may have been exchanged since it was indexed. Raises BadSample."""
    kinds = [
        None if isinstance(visual, Picture) else len(visual.frames) if isinstance(visual, Video) else "file"
        for visual in composition.visuals
    ]
    if kinds != ["file" if plan.ticks else len(plan.times) or None for plan in shown]:
        raise BadSample("has other images and videos than are indexed; run `data index` again")


def grid_of(frames: int, height: int, width: int, rules: Rules) -> Grid:
    if frames:
        return video_grid(frames, height, width, rules.limits, rules.vision)
    return image_grid(height, width, rules.limits, rules.vision)


def visual_figures(frames: int, height: int, width: int, rules: Rules) -> tuple[int, int]:
    """(tokens with their markers but without timestamps, patches); (0, 0) where the resize rule refuses."""
    try:
        groups, rows, columns = grid_of(frames, height, width, rules)
    except BadSample:
        return 0, 0
    return groups * (rows * columns // rules.vision.spatial_merge_size**2 + 2), groups * rows * columns
