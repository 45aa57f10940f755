"""Lengths and patches of a shard's rows, from its index: what planning knows of a sample.

A row is a sample, or one part of a document that is longer than the sequence (``parts.divide``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from megatron_qwen3vl.data.index import ShardIndex
from megatron_qwen3vl.data.parts import divide
from megatron_qwen3vl.data.render import video_stamps
from megatron_qwen3vl.data.shown import Rules, grid_of, show, show_all, visual_figures
from megatron_qwen3vl.data.timestamps import choose_style
from megatron_qwen3vl.errors import BadSample


@dataclass(frozen=True)
class ShardRows:
    """``table`` int32 [rows, 2]: length and patches of each row; length 0 cannot be used. ``split_samples`` and
    ``split_parts`` int64 [S]: the divided samples, ascending, and into how many rows each. ``domains``: numbers of the
    index's domains of usable samples."""

    table: np.ndarray
    split_samples: np.ndarray
    split_parts: np.ndarray
    domains: tuple[int, ...]


def measure_shard(index: ShardIndex, rules: Rules) -> ShardRows:
    """The rows of all samples of a shard in their order."""
    num_samples = len(index)
    starts = index.arrays["visual_starts"].astype(np.int64)
    owners = np.repeat(np.arange(num_samples), starts[1:] - starts[:-1])
    frames, stamps = _sampled(index, owners, rules)
    tokens, patches = _figures(frames, index.arrays["visual_sizes"].reshape(-1, 2), rules)
    usable = index.arrays["reason_of"] < 0
    usable[owners[patches == 0]] = False
    tokens = tokens + stamps
    lengths = index.counts("text_tokens", rules.tokenizer) + np.bincount(owners, tokens, num_samples).astype(np.int64)
    table = np.zeros((num_samples, 2), np.int32)
    table[usable, 0] = lengths[usable]
    table[usable, 1] = np.bincount(owners, patches, num_samples).astype(np.int64)[usable]
    domains = tuple(np.unique(index.arrays["domain_of"][usable]).tolist())
    none = np.zeros(0, np.int64)
    limit = rules.sampling.sequence_length
    if limit is None or not rules.split:
        return ShardRows(table, none, none, domains)
    long = np.flatnonzero((table[:, 0] > limit) & (index.arrays["is_document"] > 0))
    parts = {}
    for sample in long.tolist():
        divided = _parts(index, sample, int(table[sample, 0]), tokens, patches, rules)
        if divided is not None:
            parts[sample] = divided
    if not parts:
        return ShardRows(table, none, none, domains)
    samples = np.array(list(parts), np.int64)
    pieces, before = [], 0
    for sample, rows in parts.items():
        pieces += [table[before:sample], rows]
        before = sample + 1
    return ShardRows(
        np.concatenate([*pieces, table[before:]]),
        samples,
        np.array([len(rows) for rows in parts.values()], np.int64),
        domains,
    )


def why_unusable(index: ShardIndex, sample: int, rules: Rules) -> str:
    """Why a sample has no length; empty where it has one."""
    reason = index.reason(sample)
    if reason is not None:
        return reason
    for visual in show_all(index.visuals(sample), rules):
        try:
            grid_of(len(visual.times), visual.height, visual.width, rules)
        except BadSample as bad:
            return str(bad)
    return ""


def _parts(
    index: ShardIndex, sample: int, length: int, tokens: np.ndarray, patches: np.ndarray, rules: Rules
) -> np.ndarray | None:
    """int32 [parts, 2]; None for a sample that cannot be divided. ``tokens``, ``patches``: of each image and video."""
    limit = rules.sampling.sequence_length
    assert limit is not None
    first, last = index.arrays["visual_starts"][sample : sample + 2].tolist()
    sizes = tokens[first:last].astype(np.int64)
    begins = index.counts("text_before", rules.tokenizer)[first:last] + np.cumsum(sizes) - sizes
    breaks = _breaks(index, sample, begins, sizes, rules)
    ends = np.unique(np.concatenate([breaks, begins])).tolist()
    bounds = divide(length, list(zip(begins.tolist(), (begins + sizes).tolist(), strict=True)), ends, limit)
    if bounds is None:
        return None
    part_of = np.searchsorted(bounds, begins, side="right") - 1
    own_patches = np.bincount(part_of, patches[first:last], len(bounds) - 1)
    return np.stack([np.diff(bounds), own_patches], axis=1).astype(np.int32)


def _breaks(index: ShardIndex, sample: int, begins: np.ndarray, sizes: np.ndarray, rules: Rules) -> np.ndarray:
    """Where in the rendered sample two text parts meet: text before it and the images in front of that text."""
    first, last = index.arrays["break_starts"][sample : sample + 2].tolist()
    breaks = index.counts("text_breaks", rules.tokenizer)[first:last].astype(np.int64)
    text_before = begins - (np.cumsum(sizes) - sizes)
    # an image with as much text before it as the break lies in front of it or behind: an end of text either way
    images_before = np.searchsorted(text_before, breaks, side="left")
    return breaks + np.concatenate([[0], np.cumsum(sizes)])[images_before]


def _figures(frames: np.ndarray, sizes: np.ndarray, rules: Rules) -> tuple[np.ndarray, np.ndarray]:
    """Tokens without timestamps and patches of images and videos, int64 [I] each; few distinct sizes stand for many, so
    the rule itself, written for a single one, is fast enough."""
    height, width = sizes.astype(np.int64).T
    packed = (frames << 40) | (height << 20) | width  # sides below 2^20: PIL reads no larger image
    if len(sizes) and (sizes.max() >= 1 << 20 or frames.max() >= 1 << 23):
        rows, which = np.unique(np.stack([frames, height, width], axis=1), axis=0, return_inverse=True)
    else:
        distinct, which = np.unique(packed, return_inverse=True)
        rows = np.stack([distinct >> 40, distinct >> 20 & 0xFFFFF, distinct & 0xFFFFF], axis=1)
    figures = np.array([visual_figures(f, h, w, rules) for f, h, w in rows.tolist()], np.int64).reshape(-1, 2)
    tokens, patches = figures[which.ravel()].T
    return tokens, patches


def _sampled(index: ShardIndex, owners: np.ndarray, rules: Rules) -> tuple[np.ndarray, np.ndarray]:
    """Of each image and video the frames shown (an image: 0) and the tokens of its timestamps, int64 [I] each."""
    frames = index.arrays["visual_frames"].astype(np.int64)
    stamps = np.zeros(len(owners), np.int64)
    is_file = index.arrays["visual_time_base"].reshape(-1, 2)[:, 1] > 0
    files = np.bincount(owners[is_file], minlength=len(index))
    known: dict[tuple[object, ...], tuple[int, int]] = {}  # many videos have the same rate and number of frames
    for number in np.flatnonzero(frames).tolist():
        visual, owner = index.visual(number), int(owners[number])
        style = choose_style(rules.timestamps, index.string("key", owner))
        times = (visual.frames, visual.fps, visual.time_base, visual.ticks.tobytes())
        # the size decides how many frames of a file fit
        facts = (*times, visual.height, visual.width, int(files[owner])) if visual.is_file else times
        if (style, *facts) not in known:
            shown = show(visual, int(files[owner]), rules)
            texts = video_stamps(shown.times, style, rules.vision)
            known[(style, *facts)] = len(shown.times), sum(len(rules.tokenizer.encode(text)) for text in texts)
        frames[number], stamps[number] = known[(style, *facts)]
    return frames, stamps
