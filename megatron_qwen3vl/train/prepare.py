"""What is settled before torch is loaded: the model's shape, and every problem that the configuration shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from megatron_qwen3vl.config.check import STAGES, check_evaluate, check_run
from megatron_qwen3vl.config.schema import EvaluateConfig, ModelConfig, RunConfig
from megatron_qwen3vl.errors import UserError
from megatron_qwen3vl.parallel.layout import Layout, resolve


def prepare_run(config: RunConfig, world_size: int, earlier_problems: Sequence[str] = ()) -> RunConfig:
    """The run with the shape it will have: the config.json of what it begins from beats ``model``.

    Raises UserError with every problem of the run on this number of processes, after those that are known already.
    Doing it twice changes nothing.
    """
    problems = list(earlier_problems)
    model = _model_of_run(config, problems)
    if model is not None:
        config = replace(config, model=model)
    for name in dict.fromkeys(config.run.stages):
        if name in STAGES:
            stage = config.stages[name]
            layout = Layout.from_config(resolve(config.parallel, stage.parallel), world_size)
            problems += layout.problems(config.model, stage, name)
    check_run(config, problems)
    return config


def prepare_evaluate(config: EvaluateConfig, world_size: int, earlier_problems: Sequence[str] = ()) -> None:
    """Raises UserError with every problem of an evaluation on this number of processes."""
    problems = list(earlier_problems)
    model = _model_of(config.run.init_from, problems)
    if model is not None:
        problems += Layout.from_config(config.parallel, world_size).problems_without_stage(model)
    check_evaluate(config, problems)


def with_model_of_origin(config: RunConfig) -> RunConfig:
    """Raises UserError when the keys of ``run.init_*`` name no folder of a model that can be built."""
    if config.run.init_from is not None and not (Path(config.run.init_from) / "config.json").is_file():
        raise UserError(f"run.init_from={config.run.init_from}: holds no config.json")
    problems: list[str] = []
    model = _model_of_run(config, problems)
    if problems:
        raise UserError(problems)
    return config if model is None else replace(config, model=model)


def _model_of_run(config: RunConfig, problems: list[str]) -> ModelConfig | None:
    """The model of what the run begins from; None where that is nothing, or nothing that can be built (then a problem,
    or one that check_run names: a folder that is not there)."""
    language, vision = config.run.init_language, config.run.init_vision
    if language is None or vision is None:
        return _model_of(config.run.init_from, problems)
    if not all((Path(folder) / "config.json").is_file() for folder in (language, vision)):
        return None
    from megatron_qwen3vl.convert.beginning_config import compose_model  # loads torch

    try:
        return compose_model(config.model, Path(language), Path(vision), config.run.rope_theta)
    except UserError as error:
        problems += error.problems
        return None


def _model_of(folder: str | None, problems: list[str]) -> ModelConfig | None:
    """The model of the folder's config.json; None where there is none, or none that can be built (then a problem)."""
    if folder is None or not (Path(folder) / "config.json").is_file():
        return None
    from megatron_qwen3vl.convert.config import read_config  # loads torch, which most runs need not wait for here

    try:
        return read_config(Path(folder))
    except UserError as error:
        problems += error.problems
        return None
