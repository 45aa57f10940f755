"""Code samples are code: they compile, are found in the files they name, and define what was asked for."""

from __future__ import annotations

import ast
import importlib.util
import re
import sysconfig
from pathlib import Path

import pytest
import yaml

from megatron_qwen3vl.errors import UserError
from megatron_qwen3vl.recipes.build import build
from megatron_qwen3vl.recipes.code_files import CodeSettings, modules
from megatron_qwen3vl.recipes.reader import ReadSample, read_samples

RECIPE = Path(__file__).parents[3] / "data_recipes" / "domains" / "code.yaml"


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[ReadSample]]:
    folder = tmp_path_factory.mktemp("code")
    tree = yaml.safe_load(RECIPE.read_text()) | {"splits": {"train": 160, "held_out": 40}}
    (folder / "code.yaml").write_text(yaml.safe_dump(tree))
    build(folder / "code.yaml", folder / "out")
    return {split: list(read_samples(folder / "out" / split)) for split in tree["splits"]}


def file_of(module: str) -> Path:
    inside = Path(sysconfig.get_paths()["stdlib"]) / module
    package, _, name = module.partition("/")
    spec = None if inside.is_file() else importlib.util.find_spec(package)
    return inside if spec is None or spec.origin is None else Path(spec.origin).parent / name


def squeezed(source: str) -> str:
    return re.sub(r"\s+", "", source)


def test_every_sample_compiles_and_stands_in_its_file(samples: dict[str, list[ReadSample]]) -> None:
    modules_of: dict[str, set[str]] = {split: set() for split in samples}
    asked = 0
    for split, some in samples.items():
        for sample in some:
            if "content" in sample.body:
                module, _, source = sample.parts[0]["text"].removeprefix("# ").partition("\n")
            else:
                ((question, answer),) = sample.turns
                name, module, says = re.match(
                    r"Write the Python function `(\w+)` of (\S+)\.\n\n(.*)", question, re.S
                ).groups()  # type: ignore[union-attr]
                source = answer.removeprefix("```python\n").removesuffix("```")
                (function,) = ast.parse(source).body
                assert isinstance(function, ast.FunctionDef) and function.name == name
                assert squeezed(ast.get_docstring(function) or "") == squeezed(says)
                asked += 1
            assert ast.parse(source).body
            text = file_of(module).read_text(errors="replace")
            for statement in ast.parse(source).body:  # comments between two of them may be left out
                assert squeezed(ast.get_source_segment(source, statement) or "?") in squeezed(text), module
            modules_of[split].add(module)
    assert asked > 50
    assert len(modules_of["train"]) > 40 and not modules_of["train"] & modules_of["held_out"]


def test_a_missing_package_is_named() -> None:
    with pytest.raises(UserError, match="no_such_package is not installed"):
        list(modules(CodeSettings(("no_such_package",), (1, 9), 0.0).packages))
