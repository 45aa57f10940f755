"""One source of a mixture: its rows by number, their lengths without reading them, and the samples themselves.

Numbers run through the shards in order. A row is a sample; a document longer than the sequence may be several rows, its
parts one after another (``too_long: split``), with ``#1``, ``#2`` behind its key. Pickles as paths.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from megatron_qwen3vl.batch import IGNORE, Sample
from megatron_qwen3vl.config.schema import ModelConfig, SourceConfig, StorageConfig
from megatron_qwen3vl.data.catalogue import Catalogue, find_catalogue, hold_catalogue
from megatron_qwen3vl.data.compose import Record, Video, VideoFile, Visual, compose
from megatron_qwen3vl.data.examine import MEDIA_FREE
from megatron_qwen3vl.data.index import ShardIndex
from megatron_qwen3vl.data.indexing import reopen_index
from megatron_qwen3vl.data.lengths import why_unusable
from megatron_qwen3vl.data.limits import most_bytes
from megatron_qwen3vl.data.parts import cut
from megatron_qwen3vl.data.render import render
from megatron_qwen3vl.data.sampling import Sampling
from megatron_qwen3vl.data.shards import Member, Shard, find_shards, read_members
from megatron_qwen3vl.data.shown import Grid, Rules, Shown, check_same, grid_of, show_all
from megatron_qwen3vl.data.survey import Survey, survey_of
from megatron_qwen3vl.data.timestamps import choose_style
from megatron_qwen3vl.data.tokenizer import Tokenizer
from megatron_qwen3vl.data.video import decode_frames
from megatron_qwen3vl.data.vision import VisionLimits, decode, make_patches, resize_frame
from megatron_qwen3vl.errors import BadSample, UserError

_AT_ONCE = 64 << 20  # bytes of a sample that are read together
_INDEXES_KEPT = 1024  # open at a time, in each process


class Indexes:
    """The indexes of a source's shards by number, opened when needed. Travels to other processes as paths."""

    def __init__(
        self,
        shards: Sequence[Shard],
        tokenizer: Tokenizer,
        cache: Path | None,
        catalogue: Catalogue,
        held: Mapping[int, ShardIndex],
    ) -> None:
        """``held``: those that are in no file."""
        self._shards, self._tokenizer, self._cache = shards, tokenizer, cache
        self._catalogue, self._held = catalogue, held
        self._opened = lru_cache(_INDEXES_KEPT)(self._open)  # several threads ask: reading ahead, naming what was read

    def __reduce__(self) -> tuple[Callable[..., Indexes], tuple[object, ...]]:
        return Indexes, (self._shards, self._tokenizer, self._cache, self._catalogue, self._held)

    def __getitem__(self, shard: int) -> ShardIndex:
        """Raises UserError where the index was changed or removed since the catalogue was made."""
        return self._held[shard] if shard in self._held else self._opened(shard)

    def _open(self, shard: int) -> ShardIndex:
        return reopen_index(self._shards[shard], self._tokenizer, self._cache, self._catalogue.digest(shard))


class Source:
    """Rows 0 .. len - 1.

    Attributes:
        name: of the mixture file.
        slice_size: neighbouring samples that a lane gets together (shuffle.Order).
        lengths: int32 [n]: tokens as they will be rendered; 0 cannot be used (``reason`` says why).
        patches: int32 [n]: patches of all images and videos.
        domains: of all samples that can be used.
        damage: a line for each part of a shard that cannot be read.
        limits: of its pictures and videos.
    """

    def __init__(
        self, name: str, shards: Sequence[Shard], catalogue: Catalogue, indexes: Indexes, rules: Rules, slice_size: int
    ) -> None:
        self.name = name
        self.slice_size = slice_size
        self._shards = list(shards)
        self._catalogue = catalogue
        self._indexes = indexes
        self._rules = rules
        self.limits = rules.limits
        self.lengths = catalogue.table[:, 0]
        self.patches = catalogue.table[:, 1]
        self.domains = frozenset(domain or name for domain in catalogue.domains)
        self.damage = catalogue.damage

    def __reduce__(self) -> tuple[Callable[..., Source], tuple[object, ...]]:
        return Source, (self.name, self._shards, self._catalogue, self._indexes, self._rules, self.slice_size)

    def __len__(self) -> int:
        return len(self._catalogue)

    @property
    def num_split(self) -> tuple[int, int]:
        """How many documents are divided, and into how many rows together."""
        extra = self._catalogue.arrays["split_extra"]
        return self._catalogue.num_split, int(extra[-1]) + self._catalogue.num_split

    def survey(self, sequence_length: int) -> Survey:
        """Of all rows; nothing is read where the source was opened for this sequence length."""
        if sequence_length == self._rules.sampling.sequence_length:
            return self._catalogue.survey
        return survey_of(self.lengths, sequence_length)

    def key(self, i: int) -> str:
        """``SOURCE/SHARD/KEY``, of a part ``SOURCE/SHARD/KEY#1`` and so on."""
        shard, sample, first, count = self._catalogue.locate(i)
        part = f"#{i - first + 1}" if count > 1 else ""
        return f"{self.name}/{self._shards[shard].name}/{self._indexes[shard].string('key', sample)}{part}"

    def domain(self, i: int) -> str:
        """The sample's own domain, else the source's name."""
        shard, sample, _, _ = self._catalogue.locate(i)
        return self._indexes[shard].domain(sample) or self.name

    def reason(self, i: int) -> str:
        """Why row i cannot be used, or was not divided though it is longer than the sequence; empty when it can."""
        shard, sample, _, _ = self._catalogue.locate(i)
        limit = self._rules.sampling.sequence_length
        if self.lengths[i] <= 0:
            return why_unusable(self._indexes[shard], sample, self._rules)
        if limit is None or self.lengths[i] <= limit or not self._rules.split:
            return ""
        if not self._indexes[shard].arrays["is_document"][sample]:
            return "a conversation is not divided"
        return "an image or video in it has more tokens than that, and is not divided"

    def read(self, i: int, pixels: bool) -> Sample:
        """Sample i; without ``pixels`` no media are read and ``patches`` is None. Never raises for a bad sample.

        Returns:
            The sample, or a failed one (``failure``) of the planned length with no labels and no visual part.

        Raises:
            OSError: the shard itself can no longer be opened.
        """
        if self.lengths[i] <= 0:
            return self._failed(i, pixels, self.reason(i))
        try:
            return self._read(i, pixels)
        except BadSample as bad:
            return self._failed(i, pixels, str(bad))

    def _read(self, i: int, pixels: bool) -> Sample:
        shard, sample, first, count = self._catalogue.locate(i)
        index, rules = self._indexes[shard], self._rules
        key = index.string("key", sample)
        members = index.members(sample)
        files = self._files(shard, key, members, with_media=pixels and count == 1)
        composition = compose(Record(tuple(member.name for member in members), files), rules.tokenizer)
        shown = show_all(index.visuals(sample), rules)
        check_same(composition, shown)
        grids = [grid_of(len(visual.times), visual.height, visual.width, rules) for visual in shown]
        timed = composition.with_times([visual.times for visual in shown if visual.ticks])
        tokens = render(timed, grids, choose_style(rules.timestamps, key), rules.tokenizer, rules.vision)
        planned = int(self.lengths[first : first + count].sum(dtype=np.int64))
        if len(tokens.input_ids) != planned:
            raise BadSample(f"has {len(tokens.input_ids)} tokens, but {planned} are indexed; run `data index` again")
        wanted = range(len(shown))
        if count > 1:
            start = int(self.lengths[first:i].sum(dtype=np.int64))
            tokens, wanted = cut(tokens, start, start + int(self.lengths[i]), rules.vision.spatial_merge_size)
        visuals = [(composition.visuals[v], shown[v], grids[v]) for v in wanted]
        return Sample(
            key=self.key(i),
            domain=self.domain(i),
            input_ids=tokens.input_ids,
            labels=tokens.labels,
            positions=tokens.positions,
            visual_index=tokens.visual_index,
            grids=tokens.grids,
            patches=self._pixels(shard, key, members, files, visuals) if pixels else None,
        )

    def _files(self, shard: int, key: str, members: Sequence[Member], with_media: bool) -> dict[str, bytes]:
        """JSON and text; and, where that is not much, all else along with them: one request where shards are remote."""
        texts = [member for member in members if member.name in MEDIA_FREE]
        media = [member for member in members if member not in texts and member.size <= most_bytes(member.name)]
        small = sum(member.size for member in media) <= _AT_ONCE
        return read_members(self._shards[shard], key, texts + media if with_media and small else texts)

    def _pixels(
        self,
        shard: int,
        key: str,
        members: Sequence[Member],
        files: dict[str, bytes],
        visuals: Sequence[tuple[Visual, Shown, Grid]],
    ) -> np.ndarray:
        wanted = {name for visual, _, _ in visuals for name in _names(visual)} - files.keys()
        files |= read_members(self._shards[shard], key, [member for member in members if member.name in wanted])
        parts = [np.zeros((0, self._rules.vision.patch_values), np.uint8)]
        for visual, plan, grid in visuals:

            def fit(frame: np.ndarray, name: str, plan: Shown = plan, grid: Grid = grid) -> np.ndarray:
                """Of a video no more than one frame is held at its stored size."""
                if frame.shape[:2] != (plan.height, plan.width):
                    size = f"{plan.width} x {plan.height}"
                    raise BadSample(f"{name} is {frame.shape[1]} x {frame.shape[0]}, but {size} is indexed")
                return resize_frame(frame, grid, self._rules.vision) if grid[0] > 1 else frame

            if isinstance(visual, VideoFile):
                frames = decode_frames(files[visual.member], plan.ticks, partial(fit, name=visual.member))
            else:
                frames = [fit(decode(files[name]), name) for name in _names(visual)]
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


def _names(visual: Visual) -> tuple[str, ...]:
    """The files it is made of."""
    return visual.frames if isinstance(visual, Video) else (visual.member,)


def open_source(
    config: SourceConfig,
    base: Path,
    tokenizer: Tokenizer,
    limits: VisionLimits,
    model: ModelConfig,
    cache: Path | None = None,
    sequence_length: int | None = None,
    storage: StorageConfig | None = None,
) -> Source:
    """Open a mixture's source.

    Args:
        base: the mixture file's folder, which ``config.shards`` is relative to.
        limits: of the model; the source's own min_pixels and max_pixels go first.
        cache: folder for the indexes of shards that have none; None keeps those in memory.
        storage: how addresses are read; None refuses them.
        sequence_length: of the stage, which the frames taken from a video file follow; None outside of stages.

    Raises:
        UserError: shards that cannot be found or read, or have a stale index.
    """
    try:
        shards = find_shards(config.shards, base, storage)
    except UserError as error:
        raise UserError([f"source {config.name}: {problem}" for problem in error.problems]) from None
    limits = limits.override(config.min_pixels, config.max_pixels)
    sampling = Sampling(config.fps, config.max_frames, sequence_length)
    rules = Rules(
        tokenizer, limits, model.vision_config, config.timestamps, sampling, split=config.too_long == "split"
    )
    held: dict[int, ShardIndex] = {}
    if cache is None:
        catalogue, held = hold_catalogue(config.name, shards, rules)
    else:
        catalogue = find_catalogue(config.name, shards, rules, cache)
    indexes = Indexes(shards, tokenizer, cache, catalogue, held)
    return Source(config.name, shards, catalogue, indexes, rules, config.slice)
