"""Impossible values: each named by key, all at once, none for a sound run."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from megatron_qwen3vl.config.load import load_config, load_evaluate_config
from megatron_qwen3vl.data.tokenizer import BUILT_IN
from megatron_qwen3vl.errors import UserError
from megatron_qwen3vl.train.prepare import prepare_evaluate, prepare_run


@pytest.fixture
def sound(tmp_path: Path) -> list[str]:
    mixture = tmp_path / "mixture.yaml"
    mixture.write_text(yaml.safe_dump({"sources": [{"name": "a", "shards": "a", "weight": 1}]}))
    stages = [f"stages.{stage}.mixture={mixture}" for stage in ("s0", "s1", "s2", "s3")]
    return [*stages, "validation.every=0", f"run.dir={tmp_path}/run"]


def problems_of(overrides: list[str], world_size: int = 1) -> list[str]:
    config = load_config(overrides)
    try:
        prepare_run(config, world_size)
    except UserError as error:
        return error.problems
    return []


def test_the_demonstration_is_sound_on_one_and_two_processes(sound: list[str]) -> None:
    assert problems_of(sound) == []
    assert problems_of(sound, world_size=2) == []


def test_nothing_is_made(sound: list[str], tmp_path: Path) -> None:
    problems_of(sound)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("run", "world_size"),
    [("2b", 64), ("4b", 64), ("8b", 64), ("32b", 512), ("30b_a3b", 64), ("235b_a22b", 512)],
)
def test_named_recipes_are_possible(sound: list[str], run: str, world_size: int) -> None:
    assert problems_of([f"run=recipe_{run}", *sound], world_size) == []


IMPOSSIBLE = {
    "run.stages=[]": "run.stages: is empty",
    "run.stages=[s0,s9]": "run.stages=s9: choose out of s0, s1, s2, s3",
    "run.stages=[s1,s1]": "run.stages: s1 is listed 2 times",
    "run.seed=-1": "run.seed=-1: must be at least 0",
    "run.resume=nowhere": "run.resume=nowhere: no such folder",
    "run.init_from=nowhere": "run.init_from=nowhere: no such folder",
    "run.init_language=/tmp": "run.init_vision: is missing",
    "stages.s1.steps=0": "stages.s1.steps=0: must be at least 1",
    "stages.s1.steps=null": "stages.s1.steps: give stages.s1.steps or stages.s1.tokens",
    "stages.s1.sequence_length=0": "stages.s1.sequence_length=0",
    "stages.s1.global_batch_size=-8": "stages.s1.global_batch_size=-8",
    "stages.s1.micro_batch_size=3": "stages.s1.global_batch_size=",
    "stages.s1.trainable=[head]": "stages.s1.trainable=head: choose out of vision, merger, language",
    "stages.s1.trainable=[]": "stages.s1.trainable: is empty",
    "stages.s1.mixture=nowhere.yaml": "stages.s1.mixture=nowhere.yaml: no such file",
    "stages.s1.optimizer.lr=-1": "stages.s1.optimizer.lr=-1.0: must be at least 0",
    "stages.s1.optimizer.lr=nan": "stages.s1.optimizer.lr=nan: must be at least 0",
    "stages.s1.optimizer.min_lr=1": "stages.s1.optimizer.min_lr=1.0: above stages.s1.optimizer.lr",
    "stages.s1.optimizer.betas=[0.9,1]": "stages.s1.optimizer.betas: 1.0 is outside 0 <= beta < 1",
    "stages.s1.optimizer.eps=0": "stages.s1.optimizer.eps=0.0: must be above 0",
    "stages.s1.optimizer.weight_decay=-1": "stages.s1.optimizer.weight_decay=-1.0",
    "stages.s1.optimizer.clip_grad=-1": "stages.s1.optimizer.clip_grad=-1.0",
    "stages.s1.optimizer.schedule=step": "stages.s1.optimizer.schedule=step: choose out of constant, linear, cosine",
    "stages.s1.optimizer.warmup_steps=-1": "stages.s1.optimizer.warmup_steps=-1: must be at least 0",
    "stages.s1.optimizer.lr_scale.vision=-1": "stages.s1.optimizer.lr_scale.vision=-1.0",
    "stages.s1.parallel.recompute=some": "stages.s1.parallel.recompute=some: choose out of none, selective, full",
    "parallel.vision_recompute=some": "parallel.vision_recompute=some: choose",
    "parallel.tp=3": "parallel.tp=3",
    "stages.s1.parallel.bucket_size=0": "stages.s1.parallel.bucket_size=0: must be at least 1",
    "parallel.ep=0": "parallel.ep=0: must be at least 1",
    "loss.exponent=2": "loss.exponent=2.0: must be at least 0 and at most 1",
    "loss.chunk_size=0": "loss.chunk_size=0",
    "dtype=float16": "dtype=float16: choose out of float32, bfloat16",
    "tokenizer=nowhere": "tokenizer=nowhere: no folder with a tokenizer.json",
    "checkpoint.every=0": "checkpoint.every=0",
    "data.workers=-1": "data.workers=-1",
    "storage.retries=-1": "storage.retries=-1: must be at least 0",
    "storage.timeout_s=0": "storage.timeout_s=0.0: must be above 0",
    "storage.endpoint=host:9000": "storage.endpoint=host:9000: must begin with http:// or https://",
    "storage.endpoint=https://me:secret@host": "storage.endpoint: holds credentials",
    "storage.endpoint=me:secret@host": "storage.endpoint: holds credentials",
    "storage.cache=/etc/passwd": "storage.cache=/etc/passwd: /etc/passwd is a file",
    "storage.cache_bytes=0": "storage.cache_bytes=0: must be at least 1",
    "storage.cache_block=200000000000": "storage.cache_block=200000000000: must be at least 0 and at most 1e+11",
    "data.sample_timeout=0": "data.sample_timeout=0.0: must be above 0",
    "data.worker_memory=-1": "data.worker_memory=-1.0: must be above 0",
    "data.lookahead=3": "data.lookahead=3: must be at least 4",
    "data.max_bad_rate=1.5": "data.max_bad_rate=1.5: must be at least 0 and at most 1",
    "log.wandb=true_": "log.wandb=true_: choose out of offline, online, disabled",
    "model.text_config.num_key_value_heads=3": "model.text_config.num_key_value_heads=3: must divide 4 heads",
    "model.text_config.mrope_section=[1,2,3]": "model.text_config.mrope_section=[1, 2, 3]: needs three parts",
    "model.vision_config.out_hidden_size=7": "model.vision_config.out_hidden_size=7: must be text_config.hidden_size=",
    "model.vision_config.num_position_embeddings=63": "model.vision_config.num_position_embeddings=63: must be",
    "model.vision_config.deepstack_visual_indexes=[0,9]": "model.vision_config.deepstack_visual_indexes=[0, 9]: must",
    "model.image_token_id=5000": "model: its four *_token_id must differ and lie below vocab_size=",
}


def test_every_impossible_value_is_named_by_its_key(sound: list[str]) -> None:
    for override, message in IMPOSSIBLE.items():
        found = problems_of([*sound, override])
        assert any(problem.startswith(message) for problem in found), f"{override}: {found}"
        assert all("\n" not in problem for problem in found)


def test_all_at_once_and_each_once(sound: list[str]) -> None:
    chosen = ["run.seed=-1", "dtype=float16", "checkpoint.every=0", "parallel.tp=3", "stages.s2.optimizer.lr=-1"]
    found = problems_of([*sound, *chosen])
    assert len(found) == len(set(found))
    for override in chosen:
        assert any(problem.startswith(override.split("=")[0]) for problem in found), f"{override}: {found}"


def test_stages_that_do_not_run_are_not_checked(sound: list[str]) -> None:
    assert problems_of([*sound, "run.stages=[s0]", "stages.s3.mixture=nowhere.yaml", "stages.s3.steps=0"]) == []


def test_init_keys_exclude_one_another(sound: list[str], tmp_path: Path) -> None:
    keys = [f"run.{key}={tmp_path}" for key in ("init_from", "init_language", "init_vision")]
    assert any(problem.startswith("run.init_from: excludes") for problem in problems_of([*sound, *keys]))
    assert any("holds no config.json" in problem for problem in problems_of([*sound, *keys]))


def beginning(folder: Path) -> list[str]:
    """The configuration files of a Qwen3 and a SigLIP-2 that fit the model ``tiny``, and the keys that name them."""
    language = {
        "model_type": "qwen3", "vocab_size": 1024, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 6,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "hidden_act": "silu", "rms_norm_eps": 1e-6,
        "max_position_embeddings": 40960, "rope_theta": 1e6, "rope_scaling": None, "tie_word_embeddings": True,
    }  # fmt: skip
    vision = {"hidden_size": 128, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4}
    trees = {"language": language, "vision": {"model_type": "siglip2", "vision_config": vision}}
    for name, tree in trees.items():
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "config.json").write_text(json.dumps(tree))
    return [f"run.init_{name}={folder / name}" for name in trees]


def test_two_folders_decide_the_shape(sound: list[str], tmp_path: Path) -> None:
    keys = [*sound, *beginning(tmp_path), f"tokenizer={BUILT_IN}"]
    assert problems_of(keys) == []
    once = prepare_run(load_config(keys), 1)
    text, vision = once.model.text_config, once.model.vision_config
    assert (text.hidden_size, text.rope_theta, text.max_position_embeddings) == (64, 1e6, 262144)
    assert (vision.hidden_size, vision.out_hidden_size, vision.num_position_embeddings) == (128, 64, 64)
    assert prepare_run(once, 1) == once
    moved = prepare_run(load_config([*keys, "run.rope_theta=5e6"]), 1)
    assert moved.model.text_config.rope_theta == 5e6
    assert moved.model.vision_config == vision


def test_problems_of_two_folders_come_with_the_others(sound: list[str], tmp_path: Path) -> None:
    keys = beginning(tmp_path)
    for name, change in (("language", {"attention_bias": True}), ("vision", {"model_type": "clip"})):
        path = tmp_path / name / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    found = problems_of([*sound, *keys, "checkpoint.every=0", "run.rope_theta=-1"])
    starts = (f"{tmp_path}/language/config.json: attention_bias", f"run.init_vision={tmp_path}/vision: model_type",
              "checkpoint.every=0", "run.rope_theta=-1", "tokenizer: run.init_language holds no")  # fmt: skip
    assert len(found) == len(starts) and all(any(p.startswith(s) for p in found) for s in starts), found


def test_a_model_that_two_folders_do_not_fit(sound: list[str], tmp_path: Path) -> None:
    """``tiny`` taps layers 0, 1, 2 of 4; the 2b model's rotary sections are for heads of 128."""
    found = problems_of([*sound, *beginning(tmp_path), f"tokenizer={BUILT_IN}", "model=2b"])
    assert any("has 4 layers" in problem and "[5, 11, 17]" in problem for problem in found)
    keys = [*beginning(tmp_path), "model=2b", "model.vision_config.depth=4"]
    keys.append("model.vision_config.deepstack_visual_indexes=[0,1,2]")
    found = problems_of([*sound, *keys, f"tokenizer={BUILT_IN}"])
    assert any(problem.startswith("model.text_config.mrope_section=[24, 20, 20]") for problem in found)
    assert any(problem.startswith("model: its four *_token_id") for problem in found)


def test_rope_theta_belongs_to_the_language_folder(sound: list[str]) -> None:
    (problem,) = problems_of([*sound, "run.rope_theta=1e6"])
    assert problem.startswith("run.rope_theta: is for run.init_language only")


def test_run_dir_may_not_be_a_file(sound: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for folder in ("file", "file/deeper"):
        (problem,) = problems_of([*sound, f"run.dir={tmp_path}/{folder}"])
        assert problem.startswith(f"run.dir={tmp_path}/{folder}:")


def test_an_empty_run_dir_is_not_the_working_directory(sound: list[str]) -> None:
    assert problems_of([*sound, "run.dir="]) == ["run.dir: is empty; name a folder"]


def test_the_origins_shape_beats_model(sound: list[str], tmp_path: Path) -> None:
    from megatron_qwen3vl.convert.config import to_hf_config

    origin = load_config(["model=4b"]).model
    (tmp_path / "config.json").write_text(json.dumps(to_hf_config(origin, "bfloat16")))
    config = prepare_run(load_config([*sound, "model=tiny", f"run.init_from={tmp_path}"]), 1)
    assert asdict(config.model.text_config) == asdict(origin.text_config)
    assert prepare_run(config, 1) == config


def test_evaluate_says_all_that_it_lacks() -> None:
    with pytest.raises(UserError) as caught:
        prepare_evaluate(load_evaluate_config(["dtype=float16"]), 1)
    keys = [problem.split(":")[0].split("=")[0] for problem in caught.value.problems]
    assert sorted(keys) == ["dtype", "mixture", "run.init_from"]
