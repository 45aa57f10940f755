"""From a configuration to the model's chunks on this rank: built, filled, frozen, cast, wrapped.

    build_chunks   the pipeline chunks of this rank, weights unset
    initialize     random weights, the same in every layout and on every device
    build_model    both, then freezing, bfloat16 and megatron-core's DistributedDataParallel

A chunk is what one (virtual) pipeline rank holds.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.layers import set_defaults_if_not_set_tensor_model_parallel_attributes
from megatron.core.transformer.module import Float16Module

from megatron_qwen3vl.config.schema import LossConfig, ModelConfig, ParallelConfig
from megatron_qwen3vl.model.config import transformer_config
from megatron_qwen3vl.model.experts import single_expert
from megatron_qwen3vl.model.qwen3vl import Qwen3VL
from megatron_qwen3vl.parallel.groups import Groups

POSITION_SPREAD = 0.5  # of the ViT's position table; the embedding of a coloured patch is about as large


def build_model(
    model: ModelConfig,
    parallel: ParallelConfig,
    groups: Groups,
    dtype: str,
    loss: LossConfig,
    trainable: Sequence[str],
    seed: int | None,
) -> list[DistributedDataParallel]:
    """This rank's chunks, ready for megatron-core's schedules and distributed optimizer.

    ``trainable`` lists what learns, out of vision, merger and language; the rest gets neither gradients nor optimizer
    state. ``seed`` None leaves the weights unset, for a caller that loads all of them.
    """
    chunks = build_chunks(model, parallel, groups, dtype, loss)
    if seed is not None:
        initialize(chunks, model, seed)
    return [_wrap(chunk, trainable, dtype, parallel, disable_bucketing=index > 0) for index, chunk in enumerate(chunks)]


def build_chunks(
    model: ModelConfig, parallel: ParallelConfig, groups: Groups, dtype: str, loss: LossConfig
) -> list[Qwen3VL]:
    """One Qwen3VL per virtual pipeline stage of this rank, on ``groups.device``, weights unset.

    Under ``torch.device("meta")`` nothing is allocated.
    """
    configs = transformer_config(model, parallel, dtype, loss)
    collection = ProcessGroupCollection.use_mpu_process_groups()
    meta = torch.get_default_device().type == "meta"
    with torch.device("meta") if meta else groups.device.device:
        chunks = [
            Qwen3VL(
                configs,
                model,
                loss.chunk_size,
                collection,
                groups.vision,
                pre_process=groups.is_first_stage and stage == 0,
                post_process=groups.is_last_stage and stage == parallel.vpp - 1,
                vp_stage=stage if parallel.vpp > 1 else None,
            )
            for stage in range(parallel.vpp)
        ]
    for chunk in chunks:
        _mark_parameters(chunk)
    return chunks


def _mark_parameters(chunk: Qwen3VL) -> None:
    """Complete the marks by which megatron-core reduces, clips and stores a parameter."""
    for name, parameter in chunk.named_parameters():
        set_defaults_if_not_set_tensor_model_parallel_attributes(parameter)
        if ".experts." in name:
            # megatron-core says so only where ep > 1. With etp < tp and ep = 1 it would then reduce experts' gradients
            # over the data-parallel group, which leaves out tensor ranks that saw other tokens.
            parameter.allreduce = False


def module_of(name: str) -> str:
    """The module that a parameter belongs to: ``vision``, ``merger`` or ``language``.

    ``name`` is a parameter's name under a chunk, wrapped or not.
    """
    parts = [part for part in name.split(".") if part != "module"]
    if parts[0] == "vision" and parts[1] in ("merger", "deepstack_mergers"):
        return "merger"
    assert parts[0] in ("vision", "language"), name
    return parts[0]


def global_parameters(chunk: Qwen3VL) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """A chunk's parameters under the names they have in the whole model: layers and experts counted globally.

    Experts come one by one, as views of the parameter that holds those of this rank. A tied output matrix carries the
    embedding's name.
    """
    layers = chunk.language.decoder.layers
    offset = layers[0].layer_number - 1 if len(layers) else 0
    first_expert = 0
    if len(layers) and layers[0].is_moe_layer:
        first_expert = layers[0].mlp.local_expert_indices[0]

    def shift(name: str, pattern: str, by: int) -> str:
        return re.sub(pattern, lambda found: f"{found[1]}{int(found[2]) + by}", name)

    for name, parameter in chunk.named_parameters():
        if name == "language.output_layer.weight" and chunk.share_embeddings_and_output_weights:
            name = "language.embedding.word_embeddings.weight"
        name = shift(name, r"^(language\.decoder\.layers\.)(\d+)", offset)
        if ".experts." not in name:
            yield name, parameter
            continue
        for index in range(len(parameter)):
            own_name, view = single_expert(name, parameter, index)
            yield shift(own_name, r"(\.local_experts\.)(\d+)", first_expert), view


def initialize(chunks: Sequence[Qwen3VL], model: ModelConfig, seed: int) -> None:
    """Random weights as transformers draws them (normal(0, initializer_range), biases zero, norms one), but for the two
    terms of the ViT's first sum, which ``_spread`` draws alike in size.

    Each tensor is drawn whole on the CPU from (seed, name), then cut: the result depends on neither layout nor device.
    """
    for chunk in chunks:
        for name, parameter in global_parameters(chunk):
            with torch.no_grad():
                if name.endswith("bias"):
                    parameter.zero_()
                elif parameter.dim() == 1:
                    parameter.fill_(1.0)
                else:
                    in_language = module_of(name) == "language"
                    config = model.text_config if in_language else model.vision_config
                    std = _spread(name, parameter, config.initializer_range)
                    parameter.copy_(_draw(name, parameter, chunk.pg_collection, std, seed))


def _spread(name: str, parameter: torch.Tensor, initializer_range: float) -> float:
    """The standard deviation that a matrix is drawn with.

    A patch enters the ViT as its embedding plus its row of the position table. Were both drawn with one range, the sum
    over a patch's hundreds of values would hide where the patch stands, and a model from random weights would learn
    late to say where things are (docs/demonstration.md). Real runs begin with a trained ViT.
    """
    if name == "vision.patch_embed.weight":
        return float(parameter.shape[1] ** -0.5)  # one over the root of the values: an embedding as large as a value
    return POSITION_SPREAD if name == "vision.position_table.weight" else initializer_range


def _draw(name: str, parameter: Any, groups: ProcessGroupCollection, std: float, seed: int) -> torch.Tensor:
    """``parameter`` carries megatron-core's marks of how it is cut."""
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=7).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
    group = groups.expt_tp if ".experts." in name else groups.tp
    shape = list(parameter.shape)
    if parameter.tensor_model_parallel:
        shape[parameter.partition_dim] *= group.size()
    whole = torch.empty(shape, device="cpu").normal_(0.0, std, generator=generator)
    if not parameter.tensor_model_parallel:
        return whole
    # A strided shard (SwiGLU's [gate; up]) holds this rank's piece of each part.
    pieces = whole.chunk(group.size() * parameter.partition_stride, dim=parameter.partition_dim)
    return torch.cat(pieces[group.rank() :: group.size()], dim=parameter.partition_dim)


def _wrap(
    chunk: Qwen3VL, trainable: Sequence[str], dtype: str, parallel: ParallelConfig, disable_bucketing: bool
) -> DistributedDataParallel:
    for name, parameter in chunk.named_parameters():
        parameter.requires_grad = module_of(name) in trainable
    module = Float16Module(chunk.config, chunk) if dtype == "bfloat16" else chunk
    ddp_config = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        use_distributed_optimizer=True,
        overlap_grad_reduce=parallel.overlap,
        overlap_param_gather=parallel.overlap,
        # The schedule of several chunks starts each chunk's gather ahead; one chunk starts bucket after bucket itself.
        align_param_gather=parallel.overlap and parallel.vpp > 1,
        bucket_size=parallel.bucket_size,
    )
    wrapped = DistributedDataParallel(chunk.config, ddp_config, module, disable_bucketing=disable_bucketing)
    if parallel.overlap and chunk.post_process:
        _gather_before_head(wrapped, chunk)
    return wrapped


def _gather_before_head(wrapped: DistributedDataParallel, chunk: Qwen3VL) -> None:
    """megatron-core waits for a weight when its module is called, but the head reads the output matrix itself."""
    bucket = wrapped.param_to_bucket_group.get(chunk.language.head_weight())
    if bucket is not None:  # else it is frozen
        chunk.language.decoder.register_forward_hook(lambda *_: bucket.finish_param_sync())
