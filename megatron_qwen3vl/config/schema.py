"""The configuration as frozen dataclasses: made once by ``load.py`` from Hydra's tree, read everywhere, never changed.

The YAML under ``configs/`` lists every key with its default; nothing has a default here.
The model section keeps the names of Hugging Face's ``config.json``, so that either can build the model.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class VisionConfig:
    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    in_channels: int
    patch_size: int
    temporal_patch_size: int
    spatial_merge_size: int
    out_hidden_size: int
    num_position_embeddings: int
    deepstack_visual_indexes: tuple[int, ...]
    hidden_act: str
    initializer_range: float
    rope_theta: float

    @property
    def patch_values(self) -> int:
        """Values of one patch, the C of batch.py."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2


@dataclass(frozen=True)
class TextConfig:
    """``num_experts`` 0 is a dense model; the expert keys are then unused."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    hidden_act: str
    rms_norm_eps: float
    max_position_embeddings: int
    initializer_range: float
    rope_theta: float
    mrope_section: tuple[int, ...]
    num_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    norm_topk_prob: bool
    router_aux_loss_coef: float


@dataclass(frozen=True)
class ModelConfig:
    text_config: TextConfig
    vision_config: VisionConfig
    tie_word_embeddings: bool
    image_token_id: int
    video_token_id: int
    vision_start_token_id: int
    vision_end_token_id: int


@dataclass(frozen=True)
class ParallelConfig:
    tp: int
    pp: int
    vpp: int
    pipeline_layers: tuple[int, ...] | None  # language layers of each part in the model's order; null: automatic
    visual_share: float  # of positions, assumed by the automatic choice
    cp: int
    ep: int
    etp: int
    sp: bool
    cp_exchange: str  # auto, gather, all_to_all
    vision_dp: int  # neighbouring data-parallel ranks that share the images of a micro-batch
    recompute: str  # none, selective, full
    vision_recompute: str
    overlap: bool  # gradient reduction and weight gathering with computation
    bucket_size: int | None  # weights per message of these two; null: megatron-core's choice


# No axis, nothing recomputed and nothing to overlap with.
ONE_PROCESS = ParallelConfig(
    tp=1,
    pp=1,
    vpp=1,
    pipeline_layers=None,
    visual_share=0.5,
    cp=1,
    ep=1,
    etp=1,
    sp=False,
    cp_exchange="auto",
    vision_dp=1,
    recompute="none",
    vision_recompute="none",
    overlap=False,
    bucket_size=None,
)


@dataclass(frozen=True)
class ParallelOverride:
    """A stage's own layout; null inherits from ``parallel``."""

    tp: int | None
    pp: int | None
    vpp: int | None
    pipeline_layers: tuple[int, ...] | None
    visual_share: float | None
    cp: int | None
    ep: int | None
    etp: int | None
    sp: bool | None
    cp_exchange: str | None
    vision_dp: int | None
    recompute: str | None
    vision_recompute: str | None
    overlap: bool | None
    bucket_size: int | None


@dataclass(frozen=True)
class LearningRateScale:
    vision: float
    merger: float
    language: float


@dataclass(frozen=True)
class OptimizerConfig:
    lr: float
    min_lr: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    clip_grad: float
    schedule: str  # constant, linear, cosine
    warmup_steps: int
    lr_scale: LearningRateScale
    carry: bool


@dataclass(frozen=True)
class StageConfig:
    steps: int | None
    tokens: int | None
    sequence_length: int
    global_batch_size: int
    micro_batch_size: int
    trainable: tuple[str, ...]
    mixture: str
    optimizer: OptimizerConfig
    parallel: ParallelOverride

    @property
    def num_steps(self) -> int:
        """Optimizer steps; ``tokens`` counts positions, padding included."""
        if self.steps is not None:
            return self.steps
        assert self.tokens is not None, "config.check refuses a stage with neither"
        return -(-self.tokens // (self.global_batch_size * self.sequence_length))


@dataclass(frozen=True)
class Stages:
    s0: StageConfig
    s1: StageConfig
    s2: StageConfig
    s3: StageConfig

    def __getitem__(self, name: str) -> StageConfig:
        return {"s0": self.s0, "s1": self.s1, "s2": self.s2, "s3": self.s3}[name]


@dataclass(frozen=True)
class RunSection:
    dir: str
    stages: tuple[str, ...]
    seed: int
    trace_samples: bool | None
    resume: str
    init_from: str | None
    init_language: str | None
    init_vision: str | None
    rope_theta: float | None  # of a language model from init_language; null keeps the folder's own


@dataclass(frozen=True)
class LossConfig:
    exponent: float
    aux_coefficient: float | None  # null: config.json's router_aux_loss_coef
    chunk_size: int  # labels per chunk of the head


@dataclass(frozen=True)
class CheckpointConfig:
    every: int
    keep: int
    asynchronous: bool


@dataclass(frozen=True)
class DataConfig:
    workers: int
    prefetch: int  # steps read ahead
    lookahead: int  # waiting tokens of a lane, in sequence lengths
    max_bad_rate: float
    sample_timeout: float  # seconds for one sample in a worker
    worker_memory: float | None  # GiB that a worker may take beside what it begins with; None: no limit


@dataclass(frozen=True)
class StorageConfig:
    """How shards behind addresses are read."""

    retries: int  # after the first try
    backoff_s: float  # before the first retry; doubled each time, up to 30 s, half of it random
    timeout_s: float  # without a byte
    endpoint: str | None  # of an S3-compatible store; None: AWS_ENDPOINT_URL, else the provider's own
    anonymous: bool  # requests to s3:// and gs:// are not signed
    indexes: str | None  # folder that `data index --to` wrote; None: <run.dir>/index
    cache: str | None  # folder; None: nothing that was read is kept
    cache_bytes: int
    cache_block: int  # bytes that are fetched and kept together; 0: what a sample needs


@dataclass(frozen=True)
class ValidationConfig:
    every: int  # steps; 0 never
    mixture: str | None
    samples: int  # of each source


@dataclass(frozen=True)
class GuardConfig:
    max_skipped_steps: int  # in a row, before the run stops


@dataclass(frozen=True)
class LogConfig:
    wandb: str  # offline, online, disabled
    project: str
    progress: bool


@dataclass(frozen=True)
class RunConfig:
    run: RunSection
    model: ModelConfig
    parallel: ParallelConfig
    stages: Stages
    loss: LossConfig
    dtype: str
    tokenizer: str | None
    checkpoint: CheckpointConfig
    data: DataConfig
    storage: StorageConfig
    validation: ValidationConfig
    guard: GuardConfig
    log: LogConfig


@dataclass(frozen=True)
class EvaluateSection:
    init_from: str | None
    dir: str | None  # of quarantine.jsonl


@dataclass(frozen=True)
class EvaluateConfig:
    """The keys of ``evaluate``; the model's shape comes from ``run.init_from``."""

    run: EvaluateSection
    parallel: ParallelConfig
    loss: LossConfig
    storage: StorageConfig
    dtype: str
    tokenizer: str | None
    mixture: str | None
    out: str | None


@dataclass(frozen=True)
class SourceConfig:
    """One source of a mixture file."""

    name: str
    shards: str | tuple[str, ...]
    weight: float
    min_pixels: int | None = None
    max_pixels: int | None = None
    timestamps: str = "mixed"  # seconds, clock, mixed
    fps: float = 2.0  # frames a second taken from a video file
    max_frames: int | None = None  # of a video file; None: as the stage's sequence length allows
    slice: int = 1  # neighbouring samples that a lane gets together
    too_long: str = "split"  # split, skip: a document longer than the stage's sequence_length


@dataclass(frozen=True)
class MixtureConfig:
    path: str
    sources: tuple[SourceConfig, ...]
