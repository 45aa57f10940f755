"""Loss on held-out shards, per domain, at an interval: the first samples of each source, the same every time."""

from __future__ import annotations

from functools import partial

from megatron_qwen3vl.config.schema import RunConfig
from megatron_qwen3vl.data.source import Source
from megatron_qwen3vl.parallel.device import Device
from megatron_qwen3vl.parallel.groups import Groups
from megatron_qwen3vl.train.assemble import StageParts, index_folder, open_sources
from megatron_qwen3vl.train.feed import Parcel
from megatron_qwen3vl.train.ingredients import Ingredients
from megatron_qwen3vl.train.measure import measure, summarise


class Validation:
    def __init__(
        self, config: RunConfig, stage: str, ingredients: Ingredients, parts: StageParts, groups: Groups, device: Device
    ) -> None:
        self._config, self._stage, self._parts, self._groups, self._device = config, stage, parts, groups, device
        self._sources: list[Source] = []  # on the ranks that read
        self._wanted = config.validation.mixture is not None and config.validation.every > 0
        if self._wanted:
            channel = parts.feed.channel
            channel.take(channel.share(partial(self._open, ingredients)))

    def due(self, step: int, last: bool) -> bool:
        return self._wanted and (last or step % self._config.validation.every == 0)

    def run(self) -> dict:
        """{"loss", "samples", "loss_tokens", "domains": {name: {...}}} over ``validation.samples`` of each source."""
        chosen = [
            (source, index)
            for source in self._sources
            for index in range(min(len(source), self._config.validation.samples))
        ]
        length = self._config.stages[self._stage].sequence_length
        pad_id, channel = self._parts.tokenizer.pad_id, self._parts.feed.channel
        results = measure(self._parts.chunks, chosen, length, pad_id, channel, self._groups, self._device)
        return summarise(results, self._config.loss.exponent)

    def _open(self, ingredients: Ingredients) -> Parcel[None]:
        config, cache = self._config, index_folder(self._config)
        length = config.stages[self._stage].sequence_length
        assert config.validation.mixture is not None
        self._sources, _ = open_sources(
            config.validation.mixture, config.model, ingredients, config.storage, cache, length
        )
        return Parcel((), None)
