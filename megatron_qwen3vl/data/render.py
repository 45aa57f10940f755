"""Pieces -> token ids, labels, positions.

    Record --compose--> pieces (text already tokenised, images and videos by name) --render--> Tokens

``render`` fills in the visual spans. So planned and rendered lengths come from the same pieces. The rules:
docs/data_format.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megatron_qwen3vl.batch import IGNORE
from megatron_qwen3vl.config.schema import VisionConfig
from megatron_qwen3vl.data.compose import Composition, Picture, Text, Video
from megatron_qwen3vl.data.positions import mrope_positions
from megatron_qwen3vl.data.timestamps import group_times, stamp
from megatron_qwen3vl.data.tokenizer import Tokenizer
from megatron_qwen3vl.errors import BadSample


@dataclass(frozen=True)
class Tokens:
    """The fields of ``batch.Sample`` that need no pixels. ``spans`` int64 [V, 2]: where each image and each whole
    video, timestamps included, begins and ends."""

    input_ids: np.ndarray
    labels: np.ndarray
    positions: np.ndarray
    visual_index: np.ndarray
    grids: np.ndarray
    spans: np.ndarray


def video_stamps(times: Sequence[float], style: str, vision: VisionConfig) -> list[str]:
    """The timestamp before each temporal group of frames shown at these seconds."""
    return [stamp(seconds, style) for seconds in group_times(times, vision.temporal_patch_size)]


def render(
    composition: Composition,
    grids: Sequence[tuple[int, int, int]],
    style: str,
    tokenizer: Tokenizer,
    vision: VisionConfig,
) -> Tokens:
    """Token ids, shifted labels, positions.

    Args:
        composition: from ``compose``; its video files have got their times.
        grids: (t, h, w) in patches of each image and each whole video, in reading order.
        style: ``seconds`` or ``clock``.

    Raises:
        BadSample: the text holds placeholder tokens, or a grid is missing.
    """
    ids: list[int] = []
    loss: list[bool] = []
    starts: list[int] = []
    rows: list[tuple[int, int, int]] = []
    if len(composition.visuals) != len(grids):
        raise BadSample(f"{len(composition.visuals)} images and videos, but {len(grids)} are indexed")

    def put(tokens: list[int], bears_loss: bool) -> None:
        ids.extend(tokens)
        loss.extend([bears_loss] * len(tokens))

    def put_visual(placeholder: int, height: int, width: int) -> None:
        starts.append(len(ids) + 1)
        rows.append((1, height, width))
        count = height * width // vision.spatial_merge_size**2
        put([tokenizer.vision_start, *[placeholder] * count, tokenizer.vision_end], False)

    spans: list[tuple[int, int]] = []
    remaining = iter(grids)
    for piece in composition.pieces:
        if isinstance(piece, Text):
            put(piece.ids, piece.loss)
            continue
        groups, height, width = next(remaining)
        begin = len(ids)
        if isinstance(piece, Picture):
            put_visual(tokenizer.image_pad, height, width)
            spans.append((begin, len(ids)))
            continue
        assert isinstance(piece, Video), "a video file without the times of its frames"
        stamps = video_stamps(piece.times, style, vision)
        if len(stamps) != groups:
            raise BadSample(f"{len(piece.times)} frames, but {groups} groups are indexed")
        for text in stamps:
            put(tokenizer.encode(text), False)
            put_visual(tokenizer.video_pad, height, width)
        spans.append((begin, len(ids)))
    return _finish(np.array(ids, np.int32), np.array(loss, bool), starts, rows, spans, tokenizer, vision)


def _finish(
    ids: np.ndarray,
    loss: np.ndarray,
    starts: list[int],
    rows: list[tuple[int, int, int]],
    spans: list[tuple[int, int]],
    tokenizer: Tokenizer,
    vision: VisionConfig,
) -> Tokens:
    grids = np.array(rows, np.int32).reshape(-1, 3)
    first = np.array(starts, np.int64)
    counts = grids[:, 1] * grids[:, 2] // vision.spatial_merge_size**2
    runs = [np.arange(start, start + count) for start, count in zip(first, counts, strict=True)]
    visual_index = np.concatenate([*runs, np.zeros(0, np.int64)]).astype(np.int32)
    # Invariant 13: a text that smuggles in a placeholder would shift every feature behind it.
    if int(np.isin(ids, (tokenizer.image_pad, tokenizer.video_pad)).sum()) != len(visual_index):
        raise BadSample("text holds placeholder tokens")
    labels = np.full(len(ids), IGNORE, np.int32)
    labels[:-1] = np.where(loss[1:], ids[1:], IGNORE)
    positions = mrope_positions(len(ids), first, grids, vision.spatial_merge_size)
    return Tokens(ids, labels, positions, visual_index, grids, np.array(spans, np.int64).reshape(-1, 2))
