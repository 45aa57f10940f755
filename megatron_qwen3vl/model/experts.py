"""The experts of one layer as grouped matrix products: one call for all experts of this rank, however many tokens each
has. megatron-core routes and dispatches the tokens and brings them home.

PyTorch's ``grouped_mm`` serves CPU and CUDA alike; megatron-core's own grouped experts need Transformer Engine or
another package.

Shapes: E experts of this rank, M tokens that were sent to them (expert after expert), D width, F the experts' width on
this rank.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from megatron.core.dist_checkpointing.mapping import ShardedStateDict, ShardedTensor
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig


class Experts(MegatronModule):
    """SwiGLU experts: ``linear_fc1`` [E, 2, F, D] holds gate and up, ``linear_fc2`` [E, D, F].

    Gate and up have an axis of their own, so that a shard is one block of the whole tensor. ``tokens_per_expert``
    int64 [E] counts the tokens of each expert since the counts were last taken.
    """

    tokens_per_expert: torch.Tensor

    def __init__(
        self, num_local_experts: int, config: TransformerConfig, pg_collection: ProcessGroupCollection
    ) -> None:
        super().__init__(config)
        assert config.moe_ffn_hidden_size is not None
        self.groups = pg_collection
        width, inner = config.hidden_size, config.moe_ffn_hidden_size // pg_collection.expt_tp.size()
        dtype = config.params_dtype
        self.linear_fc1 = torch.nn.Parameter(torch.empty(num_local_experts, 2, inner, width, dtype=dtype))
        self.linear_fc2 = torch.nn.Parameter(torch.empty(num_local_experts, width, inner, dtype=dtype))
        for parameter in (self.linear_fc1, self.linear_fc2):
            set_tensor_model_parallel_attributes(parameter, is_parallel=True, dim=2, stride=1)
        self.register_buffer("tokens_per_expert", torch.zeros(num_local_experts, dtype=torch.int64), persistent=False)

    def forward(
        self, tokens_md: torch.Tensor, tokens_per_expert: torch.Tensor, probabilities_m: torch.Tensor
    ) -> tuple[torch.Tensor, None]:
        """Tokens [M, D] -> each weighted by its router probability [M]; under expert tensor parallelism this rank's
        part of the sum. ``tokens_per_expert`` int64 [E].
        """
        counts = tokens_per_expert.to(tokens_md.device, non_blocking=True)
        if self.training:
            self.tokens_per_expert += counts
        ends = counts.cumsum(0).to(torch.int32)
        gate_up = F.grouped_mm(tokens_md, self.linear_fc1.flatten(1, 2).transpose(1, 2), offs=ends)
        gate, up = gate_up.chunk(2, dim=1)
        inner_mf = self.config.activation_func(gate) * up * probabilities_m[:, None]
        return F.grouped_mm(inner_mf.to(tokens_md.dtype), self.linear_fc2.transpose(1, 2), offs=ends), None

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None
    ) -> ShardedStateDict:
        """What of the whole tensors this rank holds: its experts, and its part of their width."""
        before = len(sharded_offsets)
        experts = (before, self.groups.ep.rank(), self.groups.ep.size())
        width = (before + 2, self.groups.expt_tp.rank(), self.groups.expt_tp.size())
        return {
            prefix + name: ShardedTensor.from_rank_offsets(
                prefix + name,
                parameter,
                *sharded_offsets,
                experts,
                width,
                replica_id=(0, 0, self.groups.expt_dp.rank()),
                prepend_axis_num=before,
            )
            for name, parameter in (("linear_fc1", self.linear_fc1), ("linear_fc2", self.linear_fc2))
        }


def single_expert(name: str, stacked: torch.nn.Parameter, index: int) -> tuple[str, torch.nn.Parameter]:
    """One expert of a stacked parameter as a view, with the name and megatron-core's marks of a matrix of its own.

    ``name`` ends in ``experts.linear_fc1`` or ``experts.linear_fc2``; gate and up [2, F, D] become [2 F, D].
    """
    experts, _, kind = name.rpartition(".")
    is_gate_up = stacked.dim() == 4

    def of(whole: torch.Tensor) -> torch.Tensor:
        return whole[index].flatten(0, 1) if is_gate_up else whole[index]

    view = torch.nn.Parameter(of(stacked.data), requires_grad=stacked.requires_grad)
    set_tensor_model_parallel_attributes(
        view, is_parallel=True, dim=0 if is_gate_up else 1, stride=2 if is_gate_up else 1
    )
    if stacked.grad is not None:
        view.grad = of(stacked.grad)
    # megatron-core's gradient buffer: only what is wrapped and trainable has one.
    if hasattr(stacked, "main_grad"):
        view.main_grad = of(stacked.main_grad)  # type: ignore[attr-defined]
    return f"{experts}.local_experts.{index}.{kind}.weight", view
