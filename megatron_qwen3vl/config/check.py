"""Every problem of a run that its configuration shows, told at once and before anything expensive.

Each problem is one line: the key, what is wrong, what would be right. What a key's type forbids is ``load.py``'s to
say; what a layout forbids is ``parallel/layout.py``'s, and arrives here as finished lines.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from megatron_qwen3vl.config.paths import find_path
from megatron_qwen3vl.config.schema import (
    EvaluateConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    ParallelOverride,
    RunConfig,
    RunSection,
    StageConfig,
    Stages,
    StorageConfig,
    TextConfig,
    VisionConfig,
)
from megatron_qwen3vl.errors import UserError

STAGES = tuple(field.name for field in dataclasses.fields(Stages))
DTYPES = ("float32", "bfloat16")
MODULES = ("vision", "merger", "language")
SCHEDULES = ("constant", "linear", "cosine")
RECOMPUTE = ("none", "selective", "full")
EXCHANGES = ("auto", "gather", "all_to_all")
WANDB = ("offline", "online", "disabled")
RESUME_WORDS = ("auto", "never")


def check_run(config: RunConfig, earlier_problems: Sequence[str]) -> None:
    """Raises UserError with every problem of ``pretrain``'s configuration, after those that are known already."""
    _raise([*earlier_problems, *_run_problems(config)])


def check_evaluate(config: EvaluateConfig, earlier_problems: Sequence[str]) -> None:
    """Raises UserError with every problem of ``evaluate``'s configuration, after those that are known already."""
    _raise([*earlier_problems, *_evaluate_problems(config)])


def _raise(problems: Sequence[str]) -> None:
    if problems:
        raise UserError(list(dict.fromkeys(problems)))


def _run_problems(config: RunConfig) -> Iterator[str]:
    yield from _section(config.run)
    yield from model_problems(config.model)
    for name in dict.fromkeys(config.run.stages):
        if name in STAGES:
            yield from _stage(f"stages.{name}", config.stages[name])
    yield from _loss(config.loss)
    yield from _one_of("dtype", config.dtype, DTYPES)
    yield from _parallel("parallel", config.parallel)
    yield from _tokenizer(config.tokenizer)
    yield from _tokenizer_of_language(config.run.init_language, config.tokenizer)
    yield from _at_least("checkpoint.every", config.checkpoint.every, 1)
    yield from _at_least("checkpoint.keep", config.checkpoint.keep, 1)
    yield from _at_least("data.workers", config.data.workers, 0)
    yield from _at_least("data.prefetch", config.data.prefetch, 1)
    yield from _at_least("data.lookahead", config.data.lookahead, 4)
    yield from _between("data.max_bad_rate", config.data.max_bad_rate, 0.0, 1.0)
    yield from _above("data.sample_timeout", config.data.sample_timeout, 0.0)
    if config.data.worker_memory is not None:
        yield from _above("data.worker_memory", config.data.worker_memory, 0.0)
    yield from _storage(config.storage)
    yield from _at_least("validation.every", config.validation.every, 0)
    yield from _at_least("validation.samples", config.validation.samples, 1)
    if config.validation.every > 0:
        yield from _mixture("validation.mixture", config.validation.mixture)
    yield from _at_least("guard.max_skipped_steps", config.guard.max_skipped_steps, 1)
    yield from _one_of("log.wandb", config.log.wandb, WANDB)
    if not config.log.project:
        yield "log.project: is empty; give the project a name"


def _evaluate_problems(config: EvaluateConfig) -> Iterator[str]:
    if config.run.init_from is None:
        yield "run.init_from: needs a Hugging Face folder or a checkpoint to evaluate"
    else:
        yield from _model_folder("run.init_from", config.run.init_from)
    yield from _mixture("mixture", config.mixture)
    if config.run.dir is not None:
        yield from _writable_folder("run.dir", Path(config.run.dir))
    if config.out is not None:
        if Path(config.out).is_dir():
            yield f"out={config.out}: is a folder; name a file"
        else:
            yield from _writable_folder("out", Path(config.out).absolute().parent)
    yield from _parallel("parallel", config.parallel)
    yield from _loss(config.loss)
    yield from _storage(config.storage)
    yield from _one_of("dtype", config.dtype, DTYPES)
    yield from _tokenizer(config.tokenizer)


# ---- sections


def _section(run: RunSection) -> Iterator[str]:
    if not run.stages:
        yield f"run.stages: is empty; list some of {', '.join(STAGES)}"
    for name in dict.fromkeys(run.stages):
        yield from _one_of("run.stages", name, STAGES)
        if run.stages.count(name) > 1:
            yield f"run.stages: {name} is listed {run.stages.count(name)} times; a run holds each stage once"
    yield from _at_least("run.seed", run.seed, 0)
    if run.resume not in RESUME_WORDS and not Path(run.resume).is_dir():
        yield f"run.resume={run.resume}: no such folder; give auto, never or a checkpoint's folder"
    pair = (run.init_language, run.init_vision)
    if run.init_from is not None and pair != (None, None):
        yield "run.init_from: excludes run.init_language and run.init_vision; give the one or the other two"
    elif pair.count(None) == 1:
        missing = "run.init_vision" if run.init_vision is None else "run.init_language"
        yield f"{missing}: is missing; run.init_language and run.init_vision belong together"
    if run.rope_theta is not None:
        yield from _above("run.rope_theta", run.rope_theta, 0.0)
        if run.init_language is None:
            yield "run.rope_theta: is for run.init_language only; the others' is model.text_config.rope_theta"
    for key, folder in (("init_from", run.init_from), ("init_language", pair[0]), ("init_vision", pair[1])):
        if folder is not None:
            yield from _model_folder(f"run.{key}", folder)
    if run.dir:
        yield from _writable_folder("run.dir", Path(run.dir))
    else:  # as `run.dir=$UNSET` gives it: the working directory is never meant
        yield "run.dir: is empty; name a folder"


def _stage(key: str, stage: StageConfig) -> Iterator[str]:
    if stage.steps is None and stage.tokens is None:
        yield f"{key}.steps: give {key}.steps or {key}.tokens"
    if stage.steps is not None:
        yield from _at_least(f"{key}.steps", stage.steps, 1)
    if stage.tokens is not None:
        yield from _at_least(f"{key}.tokens", stage.tokens, 1)
    yield from _at_least(f"{key}.sequence_length", stage.sequence_length, 2)
    yield from _at_least(f"{key}.global_batch_size", stage.global_batch_size, 1)
    yield from _at_least(f"{key}.micro_batch_size", stage.micro_batch_size, 1)
    if not stage.trainable:
        yield f"{key}.trainable: is empty; list some of {', '.join(MODULES)}"
    for module in stage.trainable:
        yield from _one_of(f"{key}.trainable", module, MODULES)
    yield from _mixture(f"{key}.mixture", stage.mixture)
    yield from _optimizer(f"{key}.optimizer", stage.optimizer)
    yield from _parallel(f"{key}.parallel", stage.parallel)


def _parallel(key: str, parallel: ParallelConfig | ParallelOverride) -> Iterator[str]:
    if parallel.visual_share is not None:
        yield from _between(f"{key}.visual_share", parallel.visual_share, 0.0, 1.0)
    for name, word, words in (
        ("cp_exchange", parallel.cp_exchange, EXCHANGES),
        ("recompute", parallel.recompute, RECOMPUTE),
        ("vision_recompute", parallel.vision_recompute, RECOMPUTE),
    ):
        if word is not None:
            yield from _one_of(f"{key}.{name}", word, words)
    if parallel.bucket_size is not None:
        yield from _at_least(f"{key}.bucket_size", parallel.bucket_size, 1)


def _optimizer(key: str, optimizer: OptimizerConfig) -> Iterator[str]:
    yield from _between(f"{key}.lr", optimizer.lr, 0.0, math.inf)
    yield from _between(f"{key}.min_lr", optimizer.min_lr, 0.0, math.inf)
    if optimizer.min_lr > optimizer.lr and optimizer.schedule != "constant":
        yield f"{key}.min_lr={optimizer.min_lr}: above {key}.lr={optimizer.lr}"
    for beta in optimizer.betas:
        if not 0.0 <= beta < 1.0:
            yield f"{key}.betas: {beta} is outside 0 <= beta < 1"
    yield from _above(f"{key}.eps", optimizer.eps, 0.0)
    yield from _between(f"{key}.weight_decay", optimizer.weight_decay, 0.0, math.inf)
    yield from _between(f"{key}.clip_grad", optimizer.clip_grad, 0.0, math.inf)
    yield from _one_of(f"{key}.schedule", optimizer.schedule, SCHEDULES)
    yield from _at_least(f"{key}.warmup_steps", optimizer.warmup_steps, 0)
    for module in MODULES:
        scale = {"vision": optimizer.lr_scale.vision, "merger": optimizer.lr_scale.merger}
        yield from _between(f"{key}.lr_scale.{module}", scale.get(module, optimizer.lr_scale.language), 0.0, math.inf)


def _loss(loss: LossConfig) -> Iterator[str]:
    yield from _between("loss.exponent", loss.exponent, 0.0, 1.0)
    if loss.aux_coefficient is not None:
        yield from _between("loss.aux_coefficient", loss.aux_coefficient, 0.0, math.inf)
    yield from _at_least("loss.chunk_size", loss.chunk_size, 1)


def _storage(storage: StorageConfig) -> Iterator[str]:
    yield from _at_least("storage.retries", storage.retries, 0)
    yield from _between("storage.backoff_s", storage.backoff_s, 0.0, 60.0)
    yield from _above("storage.timeout_s", storage.timeout_s, 0.0)
    if storage.endpoint is not None and "@" in storage.endpoint:
        yield "storage.endpoint: holds credentials; give them in the environment (AWS_ACCESS_KEY_ID)"
    elif storage.endpoint is not None and not storage.endpoint.startswith(("http://", "https://")):
        yield f"storage.endpoint={storage.endpoint}: must begin with http:// or https://"
    if storage.cache is not None:
        yield from _writable_folder("storage.cache", Path(storage.cache))
    yield from _at_least("storage.cache_bytes", storage.cache_bytes, 1)
    yield from _between("storage.cache_block", storage.cache_block, 0, storage.cache_bytes)


def model_problems(model: ModelConfig) -> Iterator[str]:
    """What no layout could build."""
    yield from _text(model.text_config)
    yield from _vision(model.vision_config, model.text_config)
    tokens = (model.image_token_id, model.video_token_id, model.vision_start_token_id, model.vision_end_token_id)
    if not all(0 <= token < model.text_config.vocab_size for token in tokens) or len(set(tokens)) < len(tokens):
        yield f"model: its four *_token_id must differ and lie below vocab_size={model.text_config.vocab_size}"


def _text(text: TextConfig) -> Iterator[str]:
    key = "model.text_config"
    positive = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    sizes = dataclasses.asdict(text)
    bad = [name for name in (*positive, "num_key_value_heads", "head_dim") if sizes[name] < 1]
    yield from (f"{key}.{name}={sizes[name]}: must be at least 1" for name in bad)
    if bad:
        return
    if text.num_attention_heads % text.num_key_value_heads:
        yield f"{key}.num_key_value_heads={text.num_key_value_heads}: must divide {text.num_attention_heads} heads"
    if len(text.mrope_section) != 3 or 2 * sum(text.mrope_section) != text.head_dim:
        yield f"{key}.mrope_section={list(text.mrope_section)}: needs three parts that sum to head_dim / 2"
    if text.num_experts:
        yield from _between(f"{key}.num_experts_per_tok", text.num_experts_per_tok, 1, text.num_experts)
        yield from _at_least(f"{key}.moe_intermediate_size", text.moe_intermediate_size, 1)
    yield from _one_of(f"{key}.hidden_act", text.hidden_act, ("silu",))
    yield from _above(f"{key}.rope_theta", text.rope_theta, 0.0)
    yield from _above(f"{key}.rms_norm_eps", text.rms_norm_eps, 0.0)


def _vision(vision: VisionConfig, text: TextConfig) -> Iterator[str]:
    key = "model.vision_config"
    positive = ("depth", "hidden_size", "intermediate_size", "num_heads", "in_channels", "patch_size")
    sizes = dataclasses.asdict(vision)
    more = ("temporal_patch_size", "spatial_merge_size", "num_position_embeddings")
    bad = [name for name in (*positive, *more) if sizes[name] < 1]
    yield from (f"{key}.{name}={sizes[name]}: must be at least 1" for name in bad)
    if bad:
        return
    if vision.hidden_size % (4 * vision.num_heads):  # 2D rotary: rows and columns, pairs of channels
        yield f"{key}.num_heads={vision.num_heads}: the head width of {vision.hidden_size} must be a multiple of 4"
    if vision.out_hidden_size != text.hidden_size:
        yield f"{key}.out_hidden_size={vision.out_hidden_size}: must be text_config.hidden_size={text.hidden_size}"
    if math.isqrt(vision.num_position_embeddings) ** 2 != vision.num_position_embeddings:
        yield f"{key}.num_position_embeddings={vision.num_position_embeddings}: must be a square number"
    taps = vision.deepstack_visual_indexes
    if list(taps) != sorted(set(taps)) or not all(0 <= tap < vision.depth for tap in taps):
        yield f"{key}.deepstack_visual_indexes={list(taps)}: must ascend within depth={vision.depth}"
    if len(taps) > text.num_hidden_layers:
        yield f"{key}.deepstack_visual_indexes: {len(taps)} levels need as many language layers"
    yield from _one_of(f"{key}.hidden_act", vision.hidden_act, ("gelu_pytorch_tanh",))


# ---- files


def _mixture(key: str, name: str | None) -> Iterator[str]:
    if name is None:
        yield f"{key}: needs a mixture file"
    elif not find_path(name).is_file():
        yield f"{key}={name}: no such file; give a mixture as in data_recipes/mixtures"


def _model_folder(key: str, name: str) -> Iterator[str]:
    if not Path(name).is_dir():
        yield f"{key}={name}: no such folder"
    elif not (Path(name) / "config.json").is_file():
        yield f"{key}={name}: holds no config.json; give a Hugging Face folder or a checkpoint"


def _tokenizer(name: str | None) -> Iterator[str]:
    if name is not None and not (Path(name) / "tokenizer.json").is_file():
        yield f"tokenizer={name}: no folder with a tokenizer.json"


def _tokenizer_of_language(init_language: str | None, tokenizer: str | None) -> Iterator[str]:
    """The built-in tokenizer never fits a Qwen3."""
    if init_language is not None and tokenizer is None and not (Path(init_language) / "tokenizer.json").is_file():
        yield "tokenizer: run.init_language holds no tokenizer.json; name a folder (`data tokenizer` makes Qwen's)"


def _writable_folder(key: str, folder: Path) -> Iterator[str]:
    """The folder may be absent; then its nearest parent that exists has to let it be made."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        yield f"{key}={folder}: {existing} is a file; name a folder"
    elif not os.access(existing, os.W_OK | os.X_OK):
        yield f"{key}={folder}: {existing} may not be written"


# ---- values


def _one_of(key: str, value: str, choices: Sequence[str]) -> Iterator[str]:
    if value not in choices:
        yield f"{key}={value}: choose out of {', '.join(choices)}"


def _at_least(key: str, value: int, least: int) -> Iterator[str]:
    if value < least:
        yield f"{key}={value}: must be at least {least}"


def _above(key: str, value: float, limit: float) -> Iterator[str]:
    if not limit < value < math.inf:
        yield f"{key}={value}: must be above {limit:g}"


def _between(key: str, value: float, least: float, most: float) -> Iterator[str]:
    if not (least <= value <= most and math.isfinite(value)):
        yield f"{key}={value}: must be at least {least:g}" + (f" and at most {most:g}" if most < math.inf else "")
