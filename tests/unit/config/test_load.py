"""Composition: every named run, problems all together, sweeps, and the way to YAML and back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from megatron_qwen3vl.config.load import dump_yaml, expand_sweep, load_config, load_dumped, load_evaluate_config
from megatron_qwen3vl.config.schema import RunConfig
from megatron_qwen3vl.errors import UserError

CONFIGS = Path(__file__).resolve().parents[3] / "configs"


def names(group: str) -> list[str]:
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


def problems_of(*overrides: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        load_config(overrides)
    return caught.value.problems


def keys(tree: dict, prefix: str = "") -> set[str]:
    found = set()
    for key, value in tree.items():
        found |= keys(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}"}
    return found


def test_without_keys_it_is_the_demonstration() -> None:
    config = load_config([])
    assert isinstance(config, RunConfig)
    assert config.run.stages == ("s0", "s1", "s2", "s3")
    assert config.run.dir == "runs/demo"
    tiny = yaml.safe_load((CONFIGS / "model/tiny.yaml").read_text())
    assert config.model.text_config.hidden_size == tiny["text_config"]["hidden_size"]
    lengths = [config.stages[stage].sequence_length for stage in config.run.stages]
    assert lengths == sorted(lengths)
    assert lengths[-1] >= 8192


@pytest.mark.parametrize("model", ["tiny", "tiny_moe", "2b", "4b", "8b", "32b", "30b_a3b", "235b_a22b"])
def test_model_is_its_file(model: str) -> None:
    text = load_config([f"model={model}"]).model.text_config
    tree = yaml.safe_load((CONFIGS / f"model/{model}.yaml").read_text())
    assert text.hidden_size == tree["text_config"]["hidden_size"]


@pytest.mark.parametrize("layout", names("parallel"))
def test_layout_is_its_file(layout: str) -> None:
    parallel = load_config([f"parallel={layout}"]).parallel
    assert vars(parallel) == yaml.safe_load((CONFIGS / f"parallel/{layout}.yaml").read_text())


@pytest.mark.parametrize("run", [name for name in names("run") if name.startswith("recipe_")])
def test_recipes_are_the_reports(run: str) -> None:
    config = load_config([f"run={run}"])
    stages = [config.stages[stage] for stage in ("s0", "s1", "s2", "s3")]
    assert [stage.sequence_length for stage in stages] == [8192, 8192, 32768, 262144]
    assert [stage.tokens for stage in stages] == [67 * 10**9, 10**12, 10**12, 10**11]
    assert [stage.trainable for stage in stages] == [("merger",)] + [("vision", "merger", "language")] * 3
    for stage in stages:
        per_step = stage.global_batch_size * stage.sequence_length
        assert stage.num_steps * per_step >= stage.tokens > (stage.num_steps - 1) * per_step
    shape = yaml.safe_load((CONFIGS / f"model/{run.removeprefix('recipe_')}.yaml").read_text())
    assert config.model.text_config.num_hidden_layers == shape["text_config"]["num_hidden_layers"]


def test_command_line_beats_a_named_run() -> None:
    config = load_config(["model=32b", "run=recipe_8b", "stages.s1.tokens=5e9", "parallel=single"])
    assert config.model.text_config.hidden_size == 5120
    assert config.stages.s1.tokens == 5_000_000_000
    assert config.parallel.tp == 1


def test_values_reach_their_places() -> None:
    config = load_config(
        ["model.text_config.hidden_size=64", "stages.s3.parallel.cp=8", "run.stages=[s1,s3]", "loss.exponent=1"]
    )
    assert config.model.text_config.hidden_size == 64
    assert config.stages.s3.parallel.cp == 8
    assert config.stages.s2.parallel.cp is None
    assert config.run.stages == ("s1", "s3")
    assert type(config.loss.exponent) is float


def test_one_value_stands_for_a_list_of_one() -> None:
    assert load_config(["run.stages=s1"]).run.stages == ("s1",)


def test_interpolations_are_resolved() -> None:
    assert load_config(["log.project=${run.dir}/x", "run.dir=/a"]).log.project == "/a/x"


def test_no_key_needs_a_plus() -> None:
    """Every key of the dataclasses can be set as it is, to the value it has."""
    config = load_config([])
    everything = keys(yaml.safe_load(dump_yaml(config)))
    assert {"stages.s3.parallel.vision_recompute", "run.init_vision", "loss.aux_coefficient"} <= everything
    again = load_config([f"{key}={value_of(config, key)}" for key in sorted(everything)])
    assert again == config


def value_of(config: RunConfig, key: str) -> str:
    value = config
    for name in key.split("."):
        value = getattr(value, name)
    return json.dumps(value)


def test_evaluate_has_its_own_keys() -> None:
    evaluate = load_evaluate_config(["run.init_from=/a", "mixture=/b", "out=/c", "parallel.tp=2"])
    assert (evaluate.run.init_from, evaluate.mixture, evaluate.out, evaluate.parallel.tp) == ("/a", "/b", "/c", 2)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("modle=8b", "modle: unknown key; did you mean model?"),
        ("paralel.tp=2", "paralel.tp: unknown key; did you mean parallel.tp?"),
        ("lr=1", "lr: unknown key; did you mean stages.s0.optimizer.lr?"),
        ("+new.key=5", "new.key: unknown key"),
        ("parallel.tp=abc", 'parallel.tp: expected an integer, got "abc"'),
        ("parallel.tp=true", "parallel.tp: expected an integer, got true"),
        ("parallel.sp=maybe", 'parallel.sp: expected true or false, got "maybe"'),
        ("run.seed=1.5", "run.seed: expected an integer, got 1.5"),
        ("loss.exponent=null", "loss.exponent: expected a number, got null"),
        ("stages.s0.steps=many", 'stages.s0.steps: expected an integer or null, got "many"'),
        ("stages.s0.optimizer.betas=[0.9]", "stages.s0.optimizer.betas: expected a list of 2 number values, got [0.9]"),
        ("run.stages=[1]", "run.stages: expected a list of text values, got [1]"),
        ("run.dir=null", "run.dir: expected text, got null"),
        ("loss=5", "loss: expected a section of keys, got 5"),
        ("~loss.exponent", "~loss.exponent: no key can be taken away"),
        ("stages.s0.steps=1,2", "stages.s0.steps=1,2: several values at once need --multirun"),
        ("model=9b", "model=9b: choose model out of 235b_a22b, 2b, 30b_a3b, 32b, 4b, 8b, tiny, tiny_moe"),
        ("word", "word: not of the form key=value"),
        ("run.dir=${nowhere}", "run.dir: Interpolation key 'nowhere' not found"),
        ("run.dir=[1", "run.dir=[1: not of the form key=value"),
    ],
)
def test_a_mistake_is_one_clear_line(override: str, message: str) -> None:
    (problem,) = problems_of(override)
    assert problem.startswith(message)
    assert "\n" not in problem


def test_all_mistakes_together() -> None:
    found = problems_of("modle=8b", "model=9b", "parallel.tp=abc", "run.seed=1.5", "word", "checkpoint.every=true")
    assert len(found) == 6
    for key in ("modle", "model=9b", "parallel.tp", "run.seed", "word", "checkpoint.every"):
        assert any(problem.startswith(key) for problem in found), key


def test_yaml_and_back(tmp_path: Path) -> None:
    config = load_config(["run=recipe_30b_a3b", "run.init_from=/some/where", "stages.s2.optimizer.eps=1e-12"])
    (tmp_path / "config.yaml").write_text(dump_yaml(config))
    assert load_dumped(tmp_path / "config.yaml") == config


def test_foreign_yaml_is_refused(tmp_path: Path) -> None:
    for text in ("a: [", "- 1", "run: {dir: x}"):
        (tmp_path / "config.yaml").write_text(text)
        with pytest.raises(UserError, match=r"config\.yaml"):
            load_dumped(tmp_path / "config.yaml")
    with pytest.raises(UserError, match="absent"):
        load_dumped(tmp_path / "absent")


def test_a_sweep_is_the_product_of_its_choices() -> None:
    jobs = expand_sweep(["model=tiny,tiny_moe", "stages.s0.steps=range(1,3)", "stages.s0.optimizer.betas=[0.9,0.95]"])
    betas = "stages.s0.optimizer.betas=[0.9,0.95]"
    assert jobs == [
        ["model=tiny", "stages.s0.steps=1", betas],
        ["model=tiny", "stages.s0.steps=2", betas],
        ["model=tiny_moe", "stages.s0.steps=1", betas],
        ["model=tiny_moe", "stages.s0.steps=2", betas],
    ]
    assert [load_config(job).stages.s0.steps for job in jobs] == [1, 2, 1, 2]
    with pytest.raises(UserError, match="word"):
        expand_sweep(["model=tiny,tiny_moe", "word"])
