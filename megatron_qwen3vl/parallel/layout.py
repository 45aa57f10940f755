"""How processes are divided among the axes of the parallel grid, and which divisions are possible. Pure integers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from megatron_qwen3vl.config.schema import ModelConfig, ParallelConfig, ParallelOverride, StageConfig
from megatron_qwen3vl.parallel.pipeline import PipelineShape, split_problems

_Key = Callable[[str], str]  # axis or setting -> the key its value came from


@dataclass(frozen=True)
class Layout:
    """Sizes of the axes; ``vpp`` 1 is a plain pipeline, ``etp`` is the tensor axis inside experts.

    ``cp_exchange`` is how attention crosses context-parallel ranks: gather, all_to_all, or auto (``exchanges_heads``).
    ``pipeline_layers`` are the language layers of each pipeline part; None leaves them to ``pipeline.choose_split``.
    ``vision_dp`` neighbouring data-parallel ranks, and their context-parallel ranks, share the images of a micro-batch.
    """

    world_size: int
    tp: int
    pp: int
    vpp: int
    cp: int
    ep: int
    etp: int
    sp: bool
    cp_exchange: str = "auto"
    pipeline_layers: tuple[int, ...] | None = None
    vision_dp: int = 1

    @classmethod
    def from_config(cls, parallel: ParallelConfig, world_size: int) -> Layout:
        return cls(
            world_size=world_size,
            tp=parallel.tp,
            pp=parallel.pp,
            vpp=parallel.vpp,
            cp=parallel.cp,
            ep=parallel.ep,
            etp=parallel.etp,
            sp=parallel.sp,
            cp_exchange=parallel.cp_exchange,
            pipeline_layers=parallel.pipeline_layers,
            vision_dp=parallel.vision_dp,
        )

    @property
    def dp(self) -> int:
        """Data-parallel size: what is left of the world size. Meaningful where ``problems`` finds none."""
        return self.world_size // (self.tp * self.pp * self.cp)

    def shape(self, model: ModelConfig) -> PipelineShape:
        """What the pipeline divides."""
        num_levels = len(model.vision_config.deepstack_visual_indexes)
        return PipelineShape(model.text_config.num_hidden_layers, num_levels, self.pp, self.vpp)

    def exchanges_heads(self, num_heads: int, num_key_value_heads: int) -> bool:
        """Whether context-parallel ranks exchange heads, not keys and values: by default wherever heads divide.

        It moves less (queries, keys, values and outputs once, not keys and values to everybody), and each rank's
        attention then is that of one rank alone.
        """
        return self.cp_exchange != "gather" and not any(
            n % (self.tp * self.cp) for n in (num_heads, num_key_value_heads)
        )

    def problems(self, model: ModelConfig, stage: StageConfig, stage_name: str) -> list[str]:
        """Why this layout cannot run this stage of this model: one line each, naming the key; empty when it can.

        The rules are megatron-core 0.16.1's and our model's. ``stage_name`` (s0 ... s3) is for the messages' keys.
        """
        key = _Keys(stage, stage_name)
        own = stage.parallel
        has_own_parts = (own.pp, own.vpp, own.pipeline_layers) != (None, None, None)
        split_key = f"stages.{stage_name}.parallel.pipeline_layers" if has_own_parts else _run_key("pipeline_layers")
        return self._too_small(key) or [
            *self._model_problems(key, model, split_key),
            *self._batch_problems(key, stage, stage_name),
        ]

    def problems_without_stage(self, model: ModelConfig) -> list[str]:
        """As ``problems``, where only a model has to fit (``evaluate``)."""
        return self._too_small(_run_key) or list(self._model_problems(_run_key, model, _run_key("pipeline_layers")))

    def _too_small(self, key: _Key) -> list[str]:
        """Sizes that nothing can be divided by."""
        return [
            f"{key(axis)}={size}: must be at least 1"
            for axis, size in (
                ("tp", self.tp),
                ("pp", self.pp),
                ("vpp", self.vpp),
                ("cp", self.cp),
                ("ep", self.ep),
                ("etp", self.etp),
                ("vision_dp", self.vision_dp),
            )
            if size < 1
        ]

    def _model_problems(self, key: _Key, model: ModelConfig, split_key: str) -> Iterable[str]:
        """``split_key`` is where another split of the layers would be set."""
        yield from self._grid_problems(key)
        yield from self._tensor_problems(key, model)
        yield from self._context_problems(key, model)
        yield from self._expert_problems(key, model)
        if self.vpp > 1 and self.pp == 1:
            yield f"{key('vpp')}={self.vpp}: interleaving needs a pipeline; use vpp=1 or pp above 1"
        sizes = f"{key('pp')}={self.pp}"
        yield from split_problems(self.shape(model), self.pipeline_layers, sizes, key("pipeline_layers"), split_key)

    def _grid_problems(self, key: _Key) -> Iterable[str]:
        dense = self.tp * self.pp * self.cp
        if self.world_size % dense:
            yield (
                f"{key('tp')}={self.tp}: tp x pp x cp = {self.tp} x {self.pp} x {self.cp} = {dense} does not divide "
                f"the {self.world_size} processes; lower one of them or start a multiple of {dense} processes"
            )
        elif self.dp % self.vision_dp:
            yield (
                f"{key('vision_dp')}={self.vision_dp}: does not divide the data-parallel size {self.dp}; "
                f"use {_choices(self.dp, self.dp)}"
            )
        expert = self.etp * self.ep * self.pp
        if self.world_size % expert:
            yield (
                f"{key('ep')}={self.ep}: etp x ep x pp = {self.etp} x {self.ep} x {self.pp} = {expert} does not divide "
                f"the {self.world_size} processes; lower one of them or start a multiple of {expert} processes"
            )
        if self.sp and self.tp == 1:
            yield f"{key('sp')}=true: sequence parallelism needs tensor parallelism; use sp=false or tp above 1"

    def _tensor_problems(self, key: _Key, model: ModelConfig) -> Iterable[str]:
        text, vision = model.text_config, model.vision_config
        merged = vision.hidden_size * vision.spatial_merge_size**2
        divided = [
            ("num_attention_heads", text.num_attention_heads),
            ("vocab_size", text.vocab_size),
            ("vision num_heads", vision.num_heads),
            ("vision intermediate_size", vision.intermediate_size),
            ("vision merger width", merged),
        ]
        if not text.num_experts:
            divided.append(("intermediate_size", text.intermediate_size))
        for what, size in divided:
            if size % self.tp:
                yield f"{key('tp')}={self.tp}: does not divide {what} {size}; use {_choices(size, self.world_size)}"
        kv_heads = text.num_key_value_heads
        if kv_heads % self.tp and self.tp % kv_heads:
            yield (
                f"{key('tp')}={self.tp}: neither divides num_key_value_heads {kv_heads} nor is a multiple of it; "
                f"use {_choices(kv_heads, self.world_size)}"
            )

    def _context_problems(self, key: _Key, model: ModelConfig) -> Iterable[str]:
        text = model.text_config
        heads, groups = text.num_attention_heads, text.num_key_value_heads
        if self.cp > 1 and self.cp_exchange == "all_to_all" and not self.exchanges_heads(heads, groups):
            yield (
                f"{key('cp_exchange')}=all_to_all: tp x cp = {self.tp} x {self.cp} does not divide the {heads} query "
                f"and {groups} key/value heads; use auto or gather"
            )

    def _expert_problems(self, key: _Key, model: ModelConfig) -> Iterable[str]:
        text = model.text_config
        if not text.num_experts:
            for axis, size in (("ep", self.ep), ("etp", self.etp)):
                if size > 1:
                    yield f"{key(axis)}={size}: the model has no experts; use 1"
            return
        if text.num_experts % self.ep:
            yield (
                f"{key('ep')}={self.ep}: does not divide num_experts {text.num_experts}; "
                f"use {_choices(text.num_experts, self.world_size)}"
            )
        if text.moe_intermediate_size % self.etp:
            yield (
                f"{key('etp')}={self.etp}: does not divide moe_intermediate_size {text.moe_intermediate_size}; "
                f"use {_choices(text.moe_intermediate_size, self.world_size)}"
            )
        if self.tp > 1 and not self.sp:
            yield f"{key('sp')}=false: experts with tp={self.tp} need sequence parallelism; use sp=true or tp=1"

    def _batch_problems(self, key: _Key, stage: StageConfig, stage_name: str) -> Iterable[str]:
        micro, total = stage.micro_batch_size, stage.global_batch_size
        small = [
            f"stages.{stage_name}.{name}={size}: must be at least 1"
            for name, size in (
                ("micro_batch_size", micro),
                ("global_batch_size", total),
                ("sequence_length", stage.sequence_length),
            )
            if size < 1
        ]
        if small:
            yield from small
            return
        shards = (self.tp if self.sp else 1) * self.cp
        tokens = stage.sequence_length * micro
        if tokens % shards:
            parts = f"tp x cp = {self.tp} x {self.cp}" if self.sp else f"cp = {self.cp}"
            yield (
                f"stages.{stage_name}.sequence_length={stage.sequence_length}: x micro_batch_size {micro} = {tokens} "
                f"tokens do not divide by {parts}; use a multiple of {shards}"
            )
        if self.dp < 1:
            return  # said by the grid's rule
        group = self.dp * micro
        if total % group:
            yield (
                f"stages.{stage_name}.global_batch_size={total}: must be a multiple of data-parallel size {self.dp} x "
                f"micro_batch_size {micro} = {group}"
            )
        elif self.vpp > 1 and (total // group) % self.pp:
            yield (
                f"{key('vpp')}={self.vpp}: interleaving needs the {total // group} micro-batches of a step to be a "
                f"multiple of pp={self.pp}; change stages.{stage_name}.global_batch_size, or use vpp=1"
            )


def resolve(parallel: ParallelConfig, override: ParallelOverride) -> ParallelConfig:
    """A stage's own values where it has them, the run's elsewhere."""
    return ParallelConfig(
        tp=_pick(override.tp, parallel.tp),
        pp=_pick(override.pp, parallel.pp),
        vpp=_pick(override.vpp, parallel.vpp),
        pipeline_layers=parallel.pipeline_layers if override.pipeline_layers is None else override.pipeline_layers,
        visual_share=parallel.visual_share if override.visual_share is None else override.visual_share,
        cp=_pick(override.cp, parallel.cp),
        ep=_pick(override.ep, parallel.ep),
        etp=_pick(override.etp, parallel.etp),
        sp=parallel.sp if override.sp is None else override.sp,
        cp_exchange=override.cp_exchange or parallel.cp_exchange,
        vision_dp=_pick(override.vision_dp, parallel.vision_dp),
        recompute=override.recompute or parallel.recompute,
        vision_recompute=override.vision_recompute or parallel.vision_recompute,
        overlap=parallel.overlap if override.overlap is None else override.overlap,
        bucket_size=parallel.bucket_size if override.bucket_size is None else override.bucket_size,
    )


@dataclass(frozen=True)
class _Keys:
    """Names the key a value came from: the stage's own, or the run's that it inherits."""

    stage: StageConfig
    stage_name: str

    def __call__(self, axis: str) -> str:
        own = {
            "tp": self.stage.parallel.tp,
            "pp": self.stage.parallel.pp,
            "vpp": self.stage.parallel.vpp,
            "pipeline_layers": self.stage.parallel.pipeline_layers,
            "cp": self.stage.parallel.cp,
            "ep": self.stage.parallel.ep,
            "etp": self.stage.parallel.etp,
            "sp": self.stage.parallel.sp,
            "cp_exchange": self.stage.parallel.cp_exchange,
            "vision_dp": self.stage.parallel.vision_dp,
        }[axis]
        return f"parallel.{axis}" if own is None else f"stages.{self.stage_name}.parallel.{axis}"


def _run_key(axis: str) -> str:
    return f"parallel.{axis}"


def _pick(own: int | None, inherited: int) -> int:
    return inherited if own is None else own


def _choices(size: int, limit: int) -> str:
    """The divisors of ``size`` up to ``limit``, in words: ``1, 2 or 4``."""
    divisors = [str(n) for n in range(1, min(size, limit) + 1) if size % n == 0]
    return divisors[0] if len(divisors) == 1 else f"{', '.join(divisors[:-1])} or {divisors[-1]}"
