"""One source of a mixture: its samples by number, their lengths without reading them, and the samples themselves.

Numbers run through the shards in order. Pickles as paths and the two arrays of lengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from megatron_qwen3vl.batch import IGNORE, Sample
from megatron_qwen3vl.config.schema import ModelConfig, SourceConfig
from megatron_qwen3vl.data.compose import Composition, Video, VideoFile, compose
from megatron_qwen3vl.data.examine import read_record
from megatron_qwen3vl.data.index import ShardIndex
from megatron_qwen3vl.data.indexing import get_index
from megatron_qwen3vl.data.render import render, video_stamps
from megatron_qwen3vl.data.sampling import Sampling
from megatron_qwen3vl.data.shards import Member, Shard, find_shards, read_member
from megatron_qwen3vl.data.shown import Grid, Rules, Shown, check_same, grid_of, show, show_all, visual_figures
from megatron_qwen3vl.data.timestamps import choose_style
from megatron_qwen3vl.data.tokenizer import Tokenizer
from megatron_qwen3vl.data.video import decode_frames
from megatron_qwen3vl.data.vision import VisionLimits, decode, make_patches
from megatron_qwen3vl.errors import BadSample, UserError


class Source:
    """Samples 0 .. len - 1.

    Attributes:
        name: of the mixture file.
        lengths: int32 [n]: tokens as they will be rendered; 0 cannot be used (``reason`` says why).
        patches: int32 [n]: patches of all images and videos.
        domains: of all samples that can be used.
        damage: a line for each part of a shard that cannot be read.
        limits: of its pictures and videos.
        slice_size: neighbouring samples that a lane gets together (shuffle.Order).
    """

    def __init__(
        self, name: str, shards: Sequence[Shard], indexes: Sequence[ShardIndex], rules: Rules, slice_size: int
    ) -> None:
        self.name = name
        self.slice_size = slice_size
        self._shards = list(shards)
        self._indexes = list(indexes)
        self._rules = rules
        self.limits = rules.limits
        self._first = np.cumsum([0, *map(len, indexes)])
        self._refused: dict[int, str] = {}  # by these limits; the index keeps the other reasons
        measured = [self._measure(number) for number in range(len(indexes))]
        self.lengths = np.concatenate([lengths for lengths, _ in measured] or [np.zeros(0, np.int32)])
        self.patches = np.concatenate([patches for _, patches in measured] or [np.zeros(0, np.int32)])
        self.domains = frozenset(domain for number in range(len(indexes)) for domain in self._domains(number))
        self.damage = tuple(line for index in indexes for line in index.damage)

    def __len__(self) -> int:
        return int(self._first[-1])

    def key(self, i: int) -> str:
        """``SOURCE/SHARD/KEY``"""
        shard, sample = self._locate(i)
        return f"{self.name}/{self._shards[shard].name}/{self._indexes[shard].string('key', sample)}"

    def domain(self, i: int) -> str:
        """The sample's own domain, else the source's name."""
        shard, sample = self._locate(i)
        return self._indexes[shard].domain(sample) or self.name

    def reason(self, i: int) -> str:
        """Why sample i cannot be used (its length is 0); empty when it can."""
        shard, sample = self._locate(i)
        return self._refused.get(i) or self._indexes[shard].reason(sample) or ""

    def read(self, i: int, pixels: bool) -> Sample:
        """Sample i; without ``pixels`` no media are read and ``patches`` is None. Never raises for a bad sample.

        Returns:
            The sample, or a failed one (``failure``) of the planned length with no labels and no visual part.

        Raises:
            OSError: the shard itself can no longer be opened.
        """
        reason = self.reason(i)
        if reason:
            return self._failed(i, pixels, reason)
        try:
            return self._read(i, pixels)
        except BadSample as bad:
            return self._failed(i, pixels, str(bad))

    def _locate(self, i: int) -> tuple[int, int]:
        if not 0 <= i < len(self):
            raise IndexError(f"sample {i} of {len(self)}")
        shard = int(np.searchsorted(self._first, i, side="right")) - 1
        return shard, i - int(self._first[shard])

    def _read(self, i: int, pixels: bool) -> Sample:
        shard, sample = self._locate(i)
        index, rules = self._indexes[shard], self._rules
        key = index.string("key", sample)
        members = index.members(sample)
        composition = compose(read_record(self._shards[shard], key, members), rules.tokenizer)
        shown = show_all(index.visuals(sample), rules)
        check_same(composition, shown)
        grids = [grid_of(len(visual.times), visual.height, visual.width, rules) for visual in shown]
        timed = composition.with_times([visual.times for visual in shown if visual.ticks])
        tokens = render(timed, grids, choose_style(rules.timestamps, key), rules.tokenizer, rules.vision)
        if len(tokens.input_ids) != self.lengths[i]:
            has, planned = len(tokens.input_ids), self.lengths[i]
            raise BadSample(f"has {has} tokens, but {planned} are indexed; run `data index` again")
        patches = self._pixels(shard, key, members, composition, shown, grids) if pixels else None
        return Sample(
            key=self.key(i),
            domain=self.domain(i),
            input_ids=tokens.input_ids,
            labels=tokens.labels,
            positions=tokens.positions,
            visual_index=tokens.visual_index,
            grids=tokens.grids,
            patches=patches,
        )

    def _pixels(
        self,
        shard: int,
        key: str,
        members: Sequence[Member],
        composition: Composition,
        shown: Sequence[Shown],
        grids: Sequence[Grid],
    ) -> np.ndarray:
        files = {member.name: member for member in members}
        parts = [np.zeros((0, self._rules.vision.patch_values), np.uint8)]
        for visual, plan, grid in zip(composition.visuals, shown, grids, strict=True):
            if isinstance(visual, VideoFile):
                names = (visual.member,) * len(plan.ticks)
                frames = decode_frames(read_member(self._shards[shard], key, files[visual.member]), plan.ticks)
            else:
                names = visual.frames if isinstance(visual, Video) else (visual.member,)
                frames = [decode(read_member(self._shards[shard], key, files[name])) for name in names]
            for name, frame in zip(names, frames, strict=True):
                if frame.shape[:2] != (plan.height, plan.width):
                    size = f"{plan.width} x {plan.height}"
                    raise BadSample(f"{name} is {frame.shape[1]} x {frame.shape[0]}, but {size} is indexed")
            parts.append(make_patches(frames, grid, self._rules.vision))
        return np.concatenate(parts)

    def _failed(self, i: int, pixels: bool, reason: str) -> Sample:
        length, rules = int(self.lengths[i]), self._rules
        return Sample(
            key=self.key(i),
            domain=self.domain(i),
            input_ids=np.full(length, rules.tokenizer.endoftext, np.int32),
            labels=np.full(length, IGNORE, np.int32),
            positions=np.tile(np.arange(length, dtype=np.int32), (3, 1)),
            visual_index=np.zeros(0, np.int32),
            grids=np.zeros((0, 3), np.int32),
            patches=np.zeros((0, rules.vision.patch_values), np.uint8) if pixels else None,
            failure=reason,
        )

    def _domains(self, shard: int) -> set[str]:
        index = self._indexes[shard]
        usable = self.lengths[self._first[shard] : self._first[shard + 1]] > 0
        numbers = np.unique(index.arrays["domain_of"][usable]).tolist()
        return {self.name if number < 0 else index.string("domain", number) for number in numbers}

    def _measure(self, shard: int) -> tuple[np.ndarray, np.ndarray]:
        """Lengths and patches of a shard's samples, int32 [n] each."""
        index, rules = self._indexes[shard], self._rules
        counted = index.counts("text_tokens", rules.tokenizer)
        starts = index.arrays["visual_starts"]
        owners = np.repeat(np.arange(len(index)), np.diff(starts))
        frames, stamps = self._sampled(index, owners)
        columns = (frames, *index.arrays["visual_sizes"].reshape(-1, 2).T)
        rows, which = np.unique(np.stack(columns, axis=1), axis=0, return_inverse=True)
        # Few distinct sizes stand for many images: the rule itself, written for a single one, is fast enough.
        distinct = np.array([visual_figures(f, h, w, rules) for f, h, w in rows.tolist()], np.int64).reshape(-1, 2)
        tokens, patches = distinct[which.ravel()].T
        tokens = tokens + stamps
        bad_samples = set(owners[patches == 0].tolist())
        for sample in bad_samples:
            self._refused[int(self._first[shard]) + sample] = self._why_nogrid_of(index, sample)
        usable = index.arrays["reason_of"] < 0
        usable[list(bad_samples)] = False
        total = counted + np.bincount(owners, tokens, len(index)).astype(np.int64)
        patch_total = np.bincount(owners, patches, len(index)).astype(np.int64)
        return np.where(usable, total, 0).astype(np.int32), np.where(usable, patch_total, 0).astype(np.int32)

    def _why_nogrid_of(self, index: ShardIndex, sample: int) -> str:
        for visual in show_all(index.visuals(sample), self._rules):
            try:
                grid_of(len(visual.times), visual.height, visual.width, self._rules)
            except BadSample as bad:
                return str(bad)
        raise AssertionError("called for a sample that has none")

    def _sampled(self, index: ShardIndex, owners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of each image and video the frames shown (an image: 0) and the tokens of its timestamps, int64 [I] each."""
        rules = self._rules
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
                known[(style, *facts)] = (
                    len(shown.times),
                    sum(len(rules.tokenizer.encode(text)) for text in texts),
                )
            frames[number], stamps[number] = known[(style, *facts)]
        return frames, stamps


def open_source(
    config: SourceConfig,
    base: Path,
    tokenizer: Tokenizer,
    limits: VisionLimits,
    model: ModelConfig,
    cache: Path | None = None,
    sequence_length: int | None = None,
) -> Source:
    """Open a mixture's source.

    Args:
        base: the mixture file's folder, which ``config.shards`` is relative to.
        limits: of the model; the source's own min_pixels and max_pixels go first.
        cache: folder for the indexes of shards that have none; None keeps those in memory.
        sequence_length: of the stage, which the frames taken from a video file follow; None outside of stages.

    Raises:
        UserError: shards that cannot be found or read, or have a stale index.
    """
    try:
        shards = find_shards(config.shards, base)
    except UserError as error:
        raise UserError([f"source {config.name}: {problem}" for problem in error.problems]) from None
    problems: list[str] = []
    indexes = []
    for shard in shards:
        try:
            indexes.append(get_index(shard, tokenizer, cache))
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(problems)
    limits = limits.override(config.min_pixels, config.max_pixels)
    sampling = Sampling(config.fps, config.max_frames, sequence_length)
    rules = Rules(tokenizer, limits, model.vision_config, config.timestamps, sampling)
    return Source(config.name, shards, indexes, rules, config.slice)
