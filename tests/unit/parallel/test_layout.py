"""Every impossible layout is explained, each by one line that names its key; the possible ones pass."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from megatron_qwen3vl.config.schema import (
    LearningRateScale,
    ModelConfig,
    OptimizerConfig,
    ParallelOverride,
    StageConfig,
    TextConfig,
    VisionConfig,
)
from megatron_qwen3vl.parallel.layout import Layout, resolve
from tests.parity.reference import PLAIN

NOTHING = ParallelOverride(*[None] * len(fields(ParallelOverride)))
TEXT = TextConfig(
    vocab_size=512,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=8,
    num_attention_heads=8,
    num_key_value_heads=2,
    head_dim=16,
    hidden_act="silu",
    rms_norm_eps=1e-6,
    max_position_embeddings=1024,
    initializer_range=0.02,
    rope_theta=5e6,
    mrope_section=(4, 2, 2),
    num_experts=0,
    num_experts_per_tok=2,
    moe_intermediate_size=24,
    norm_topk_prob=True,
    router_aux_loss_coef=0.001,
)
VISION = VisionConfig(
    depth=6,
    hidden_size=32,
    intermediate_size=64,
    num_heads=4,
    in_channels=3,
    patch_size=16,
    temporal_patch_size=2,
    spatial_merge_size=2,
    out_hidden_size=64,
    num_position_embeddings=64,
    deepstack_visual_indexes=(1, 2, 3),
    hidden_act="gelu_pytorch_tanh",
    initializer_range=0.02,
    rope_theta=1e4,
)
DENSE = ModelConfig(TEXT, VISION, True, 1, 2, 3, 4)
EXPERTS = replace(DENSE, text_config=replace(TEXT, num_experts=6))
STAGE = StageConfig(
    steps=1,
    tokens=None,
    sequence_length=64,
    global_batch_size=8,
    micro_batch_size=1,
    trainable=("language",),
    mixture="m.yaml",
    optimizer=OptimizerConfig(
        1e-3, 0.0, (0.9, 0.95), 1e-8, 0.1, 1.0, "constant", 0, LearningRateScale(1.0, 1.0, 1.0), False
    ),
    parallel=NOTHING,
)


def problems(model: ModelConfig, world_size: int, stage: StageConfig = STAGE, **axes: int | bool | str) -> list[str]:
    sizes = {"tp": 1, "pp": 1, "vpp": 1, "cp": 1, "ep": 1, "etp": 1, "sp": False, **axes}
    return Layout(world_size=world_size, **sizes).problems(model, stage, "s1")


@pytest.mark.parametrize(
    ("model", "world_size", "axes"),
    [
        (DENSE, 1, {}),
        (DENSE, 2, {"tp": 2}),
        (DENSE, 4, {"tp": 4, "sp": True}),  # more tp than key-value heads
        (DENSE, 2, {"pp": 2}),
        (DENSE, 3, {"pp": 3}),
        (DENSE, 6, {"pp": 6}),
        (DENSE, 2, {"pp": 2, "vpp": 2, "pipeline_layers": (3, 1, 1, 3)}),
        (DENSE, 2, {"cp": 2, "cp_exchange": "all_to_all"}),
        (DENSE, 8, {"tp": 2, "sp": True, "cp": 2, "pp": 2}),
        (DENSE, 8, {"tp": 2, "sp": True, "vision_dp": 2}),
        (EXPERTS, 2, {"ep": 2}),
        (EXPERTS, 4, {"tp": 2, "sp": True, "ep": 2}),
        (EXPERTS, 2, {"tp": 2, "sp": True, "etp": 2}),
    ],
)
def test_possible_layouts(model: ModelConfig, world_size: int, axes: dict) -> None:
    assert problems(model, world_size, **axes) == []


@pytest.mark.parametrize(
    ("model", "world_size", "axes", "starts", "says"),
    [
        (DENSE, 1, {"tp": 0}, "parallel.tp=0", "at least 1"),
        (DENSE, 6, {"tp": 4, "sp": True}, "parallel.tp=4", "does not divide the 6 processes"),
        (EXPERTS, 4, {"ep": 3}, "parallel.ep=3", "does not divide the 4 processes"),
        (DENSE, 3, {"tp": 3}, "parallel.tp=3", "num_attention_heads 8; use 1 or 2"),
        (DENSE, 3, {"tp": 3}, "parallel.tp=3", "num_key_value_heads 2"),
        (DENSE, 3, {"tp": 3}, "parallel.tp=3", "vocab_size 512"),
        (DENSE, 8, {"tp": 8}, "parallel.tp=8", "vision num_heads 4; use 1, 2 or 4"),
        (DENSE, 1, {"sp": True}, "parallel.sp=true", "tp above 1"),
        (DENSE, 2, {"ep": 2}, "parallel.ep=2", "no experts"),
        (EXPERTS, 4, {"ep": 4}, "parallel.ep=4", "num_experts 6; use 1, 2 or 3"),
        (EXPERTS, 5, {"etp": 5}, "parallel.etp=5", "moe_intermediate_size 24"),
        (EXPERTS, 2, {"tp": 2}, "parallel.sp=false", "sequence parallelism"),
        (DENSE, 1, {"vpp": 2}, "parallel.vpp=2", "pp above 1"),
        (DENSE, 7, {"pp": 7}, "parallel.pp=7", "the 3 DeepStack levels in the first part fill at most 6; lower pp"),
        (DENSE, 4, {"pp": 4, "vpp": 2}, "parallel.pp=4", "4 x 2 = 8 parts, but 8 layers"),
        (DENSE, 2, {"pp": 2, "pipeline_layers": (8,)}, "parallel.pipeline_layers=[8]", "parallel.pipeline_layers=[4"),
        (DENSE, 2, {"pp": 2, "pipeline_layers": (4, 3)}, "parallel.pipeline_layers=[4,3]", "sums to 7"),
        (DENSE, 2, {"pp": 2, "pipeline_layers": (2, 6)}, "parallel.pipeline_layers=[2,6]", "3 DeepStack levels"),
        (DENSE, 2, {"pp": 2, "pipeline_layers": (8, 0)}, "parallel.pipeline_layers=[8,0]", "at least one layer"),
        (DENSE, 1, {"pipeline_layers": (4, 4)}, "parallel.pipeline_layers=[4,4]", "parallel.pipeline_layers=[8]"),
        (DENSE, 4, {"cp": 4, "cp_exchange": "all_to_all"}, "parallel.cp_exchange=all_to_all", "2 key/value heads"),
        (DENSE, 3, {"cp": 3}, "stages.s1.sequence_length=64", "multiple of 3"),
        (DENSE, 4, {"vision_dp": 0}, "parallel.vision_dp=0", "at least 1"),
        (DENSE, 4, {"vision_dp": 3}, "parallel.vision_dp=3", "data-parallel size 4; use 1, 2 or 4"),
        (DENSE, 4, {"tp": 2, "vision_dp": 4}, "parallel.vision_dp=4", "data-parallel size 2; use 1 or 2"),
        (DENSE, 3, {}, "stages.s1.global_batch_size=8", "multiple of data-parallel size 3"),
    ],
)
def test_impossible_layouts(model: ModelConfig, world_size: int, axes: dict, starts: str, says: str) -> None:
    found = problems(model, world_size, **axes)
    assert any(line.startswith(starts) and says in line for line in found), found
    assert all("\n" not in line for line in found)


def test_interleaving_wants_whole_groups_of_micro_batches() -> None:
    flat = replace(DENSE, vision_config=replace(VISION, deepstack_visual_indexes=(1,)))
    odd = replace(STAGE, global_batch_size=7)
    assert problems(flat, 2, pp=2, vpp=2) == []
    assert ["7 micro-batches" in line for line in problems(flat, 2, odd, pp=2, vpp=2)] == [True]


def test_a_stages_own_key_is_named() -> None:
    own = replace(STAGE, parallel=replace(NOTHING, tp=3))
    assert all(line.startswith("stages.s1.parallel.tp=3") for line in problems(DENSE, 3, own, tp=3) if "tp=3" in line)


def test_a_list_of_the_run_does_not_fit_a_stages_pipeline() -> None:
    """The fix is the stage's own list: another for the run would not fit the other stages."""
    own = replace(STAGE, parallel=replace(NOTHING, pp=4))
    (found,) = problems(DENSE, 4, own, pp=4, pipeline_layers=(3, 5))
    assert found.startswith("parallel.pipeline_layers=[3,5]: 2 counts for pp x vpp = 4 x 1 = 4 parts")
    assert found.endswith("use for example stages.s1.parallel.pipeline_layers=[3,1,2,2]")
    assert problems(DENSE, 4, own, pp=4, pipeline_layers=(3, 1, 2, 2)) == []


def test_resolve_inherits_what_is_null() -> None:
    run = replace(PLAIN, tp=2, sp=True, vision_recompute="full", pipeline_layers=(6,))
    own = {"sp": False, "cp": 4, "cp_exchange": "gather", "recompute": "full", "visual_share": 0.25, "vision_dp": 2}
    assert resolve(run, NOTHING) == run
    own |= {"overlap": False, "bucket_size": 7}
    assert resolve(run, replace(NOTHING, **own)) == replace(run, **own)
    assert resolve(run, replace(NOTHING, pipeline_layers=(4, 2))).pipeline_layers == (4, 2)
    assert Layout.from_config(run, 8).dp == 4
