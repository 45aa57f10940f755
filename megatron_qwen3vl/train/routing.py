"""What the routers of a mixture of experts did in the last step, over all ranks; nothing for a dense model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from megatron.core.transformer.moe import moe_utils
from megatron.core.utils import unwrap_model

from megatron_qwen3vl.config.schema import TextConfig
from megatron_qwen3vl.parallel.groups import Groups, all_reduce_sum


def aux_loss(text: TextConfig, num_batches: int) -> float | None:
    """The balance loss, mean over layers, micro-batches and data-parallel ranks. Collective."""
    if text.num_experts == 0:
        return None
    moe_utils.reduce_aux_losses_tracker_across_ranks()
    tracker = moe_utils.get_moe_layer_wise_logging_tracker()
    values = [float(entry["values"].mean()) / num_batches for entry in tracker.values()]
    moe_utils.clear_aux_losses_tracker()
    return sum(values)


def expert_load(chunks: Sequence[torch.nn.Module], text: TextConfig, groups: Groups) -> float | None:
    """Tokens of the busiest expert over the mean of its layer, in the layer where that is worst; 1 is perfect balance.

    None where no token was routed. Takes the experts' counts: they begin again at zero. Collective.
    """
    if text.num_experts == 0:
        return None
    tokens_le = torch.zeros(text.num_hidden_layers, text.num_experts, dtype=torch.float64, device=groups.device.device)
    for chunk in chunks:
        for layer in unwrap_model(chunk).language.decoder.layers:
            counts = layer.mlp.experts.tokens_per_expert
            if groups.etp_rank == 0:  # the others of an expert-tensor group see the same tokens
                tokens_le[layer.layer_number - 1, layer.mlp.local_expert_indices] += counts
            counts.zero_()
    all_reduce_sum(tokens_le)
    mean_l = tokens_le.mean(dim=1)
    return float((tokens_le.amax(dim=1) / mean_l).max()) if bool((mean_l > 0).all()) else None
