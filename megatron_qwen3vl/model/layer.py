"""The transformer layer under both models: megatron-core's, with a selective recompute that needs no extra package."""

from __future__ import annotations

from functools import partial

import torch
from megatron.core import tensor_parallel
from megatron.core.transformer.transformer_layer import TransformerLayer


class Layer(TransformerLayer):
    """``recompute: selective`` recomputes the second half of the layer, norm and feed-forward, in the backward.

    That is the larger half; flash attention keeps no more than its inputs. megatron-core 0.16.1's own selective modes
    do not serve here: recomputing norms needs Transformer Engine, and recomputing an MLP with biases hangs in the
    backward (it returns the bias, a leaf, from a checkpoint function).
    """

    def _forward_mlp(
        self,
        hidden_states: torch.Tensor,
        inference_context: None = None,
        padding_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        run = partial(super()._forward_mlp, padding_mask=padding_mask)
        selective = self.config.recompute_granularity == "selective"
        if selective and self.training and hidden_states.requires_grad:
            return tensor_parallel.checkpoint(run, False, hidden_states)
        return run(hidden_states)
