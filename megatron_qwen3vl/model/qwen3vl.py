"""Qwen3-VL: what one pipeline chunk holds of it, and the way of a batch through it.

    first chunk    see (vision) -> embed -> place the features -> decode, adding DeepStack levels
    middle         decode what the previous chunk sent
    last           decode -> token losses [N]

Shapes: T tokens, D width, V visual tokens, N labels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.enums import ModelType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_qwen3vl.batch import Batch
from megatron_qwen3vl.config.schema import ModelConfig
from megatron_qwen3vl.model.images import send_features, share_images
from megatron_qwen3vl.model.language import LanguageModel
from megatron_qwen3vl.model.share import Cut, Work, cut_batch
from megatron_qwen3vl.model.vision import VisionEncoder
from megatron_qwen3vl.parallel.sequence import Routes


class Qwen3VL(MegatronModule):
    """One pipeline chunk: ``vision`` only on the first, ``language`` on each.

    ``pre_process``, ``post_process``, ``share_embeddings_and_output_weights``, ``model_type``, ``vp_stage`` and
    ``pg_collection`` are what megatron-core's schedules and gradient reduction ask of a chunk.
    """

    def __init__(
        self,
        configs: tuple[TransformerConfig, TransformerConfig],
        model: ModelConfig,
        chunk_size: int,
        groups: ProcessGroupCollection,
        vision_group: dist.ProcessGroup,
        pre_process: bool,
        post_process: bool,
        vp_stage: int | None,
    ) -> None:
        language_config, vision_config = configs
        super().__init__(language_config)
        self.model_type = ModelType.encoder_or_decoder
        self.pre_process = pre_process
        self.post_process = post_process
        self.vp_stage = vp_stage
        self.share_embeddings_and_output_weights = model.tie_word_embeddings
        self.pg_collection = groups
        self.tp_group = groups.tp
        self.cp_group = groups.cp
        self.vision_group = vision_group
        self.vision_shape = model.vision_config
        if pre_process:
            self.vision = VisionEncoder(vision_config, model.vision_config, groups)
        self.language = LanguageModel(language_config, model, chunk_size, groups, pre_process, post_process, vp_stage)

    def split(self, batches: Sequence[Batch]) -> list[Work]:
        """What this rank does of the micro-batches of a step. Collective over the ranks that share images."""
        num_cp = self.cp_group.size()
        cut = [cut_batch(batch, self.cp_group.rank(), num_cp) for batch in batches]
        if not self.pre_process:
            return [Work(batch, where) for batch, where, _ in cut]
        return share_images(cut, self.vision_shape, self.vision_group, num_cp)

    def forward(self, batch: Batch, cut: Cut | None = None, routes: Routes | None = None) -> torch.Tensor:
        """Token losses float32 [N], in the order of the batch's label positions, on the last chunk; else hidden states.

        Hidden states are [T, 1, D], or each tensor rank's part of T under sequence parallelism. ``batch``,
        ``cut`` and ``routes`` are those of ``split``; under context parallelism T are the own tokens.
        """
        hidden = self._hidden_states(batch, cut, routes)
        return self.language.token_losses(hidden, batch.labels) if self.post_process else hidden

    def logits(self, batch: Batch) -> torch.Tensor:
        """Logits [T, vocabulary] of every position, on the last chunk, without context parallelism.

        T x vocabulary in memory: for tests.
        """
        return self.language.logits(self._hidden_states(batch, None, None))

    def set_input_tensor(self, input_tensor: torch.Tensor | list[torch.Tensor | None] | None) -> None:
        """megatron-core's schedules hand over what the previous pipeline rank sent."""
        self.language.set_input_tensor(input_tensor)

    def shared_embedding_or_output_weight(self) -> torch.Tensor | None:
        """The tied matrix of the first or last chunk, whose gradients megatron-core sums between the two."""
        return self.language.shared_embedding_or_output_weight()

    def _hidden_states(self, batch: Batch, cut: Cut | None, routes: Routes | None) -> torch.Tensor:
        assert (cut is None) == (self.cp_group.size() == 1), "a batch is split before it reaches the model"
        if not self.pre_process:
            return self.language.decode(batch, None, None, cut)
        features_vd, levels_lvd = self.vision(batch.patches, batch.grids)
        if routes is not None:
            features_vd, levels_lvd = send_features(features_vd, levels_lvd, routes, self.vision_group)
        hidden_t1d = self.language.embed(batch.input_ids)
        # Placed before the split over tensor ranks, so that each rank finds its tokens whole.
        hidden_t1d = hidden_t1d.index_copy(0, batch.visual_index, features_vd.unsqueeze(1).to(hidden_t1d.dtype))
        return self.language.decode(batch, hidden_t1d, levels_lvd.to(hidden_t1d.dtype), cut)
