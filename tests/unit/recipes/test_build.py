"""data build: the same recipe makes the same bytes; the recipes and mixtures of the repository fit each other."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
import yaml

from megatron_qwen3vl.config.load import load_config
from megatron_qwen3vl.config.schema import SourceConfig
from megatron_qwen3vl.data.loader import to_pack
from megatron_qwen3vl.data.mixture import load_mixture
from megatron_qwen3vl.data.source import open_source
from megatron_qwen3vl.data.tokenizer import load_tokenizer
from megatron_qwen3vl.data.vision import read_limits
from megatron_qwen3vl.errors import UserError
from megatron_qwen3vl.recipes.build import build, read_recipe

RECIPES = Path(__file__).parents[3] / "data_recipes"
DOMAINS = sorted((RECIPES / "domains").glob("*.yaml"))
MIXTURES = sorted((RECIPES / "mixtures").glob("*.yaml"))


def small(recipe: Path, folder: Path, **changes: object) -> Path:
    """A copy of a recipe with a few samples only."""
    tree = (
        yaml.safe_load(recipe.read_text()) | {"splits": {"train": 5, "held_out": 3}, "samples_per_shard": 2} | changes
    )
    folder.mkdir(exist_ok=True)
    path = folder / recipe.name
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return path


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*.tar"))}


@pytest.mark.parametrize("recipe", [d for d in DOMAINS if d.stem != "long_video"], ids=lambda p: p.stem)
def test_same_seed_same_bytes(recipe: Path, tmp_path: Path) -> None:
    path = small(recipe, tmp_path / "recipe")
    seen: list[tuple[int, int]] = []
    summary = build(path, tmp_path / "a", lambda done, planned: seen.append((done, planned)))
    build(path, tmp_path / "b")
    build(small(recipe, tmp_path / "other", seed=99), tmp_path / "c")
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert files(tmp_path / "a") != files(tmp_path / "c")
    assert [(s.name, s.samples, len(s.shards)) for s in summary] == [("train", 5, 3), ("held_out", 3, 2)]
    assert seen[-1] == (8, 8)


@pytest.mark.parametrize("recipe", [d for d in DOMAINS if d.stem != "long_video"], ids=lambda p: p.stem)
def test_every_sample_is_whole(recipe: Path, tmp_path: Path) -> None:
    build(small(recipe, tmp_path / "recipe"), tmp_path / "out")
    for shard in (tmp_path / "out").rglob("*.tar"):
        with tarfile.open(shard) as tar:
            names = set(tar.getnames())
            for name in [n for n in names if n.endswith(".json")]:
                file = tar.extractfile(name)
                assert file is not None
                body = json.loads(file.read())
                used = {f"{name.removesuffix('.json')}.{media}" for media in media_of(body)}
                assert used <= names
                names -= used | {name}
        assert not names, "files that no sample uses"
    assert_packs(tmp_path / "out")


def assert_packs(shards: Path) -> None:
    """Every sample becomes tokens, pixels and labels of one pack, as in a run."""
    model = load_config([]).model
    tokenizer = load_tokenizer(None, model)
    source = open_source(SourceConfig("domain", str(shards), 1.0), shards, tokenizer, read_limits(None), model)
    samples = [source.read(i, pixels=True) for i in range(len(source))]
    assert len(samples) == 8
    assert [(sample.key, sample.failure) for sample in samples if sample.failure] == []
    assert min(sample.num_labels for sample in samples) > 0
    length = int(source.lengths.sum()) + 1
    pack = to_pack(0, samples, length, tokenizer.endoftext)
    visual = pack.grids.prod(1).sum() // model.vision_config.spatial_merge_size**2
    assert len(pack.visual_index) == visual and len(pack.documents) == 8 and pack.num_padding == 1


def media_of(body: dict) -> list[str]:
    assert set(body) in ({"content", "domain"}, {"messages", "domain"})
    contents = [body["content"]] if "content" in body else [m["content"] for m in body["messages"]]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    named = [part for part in parts if part["type"] != "text"]
    return [name for part in named for name in ([part[part["type"]]] if part["type"] in part else part["frames"])]


def test_rebuilding_leaves_nothing_of_the_old(tmp_path: Path) -> None:
    recipe = RECIPES / "domains" / "digits.yaml"
    build(small(recipe, tmp_path / "r"), tmp_path / "out")
    build(small(recipe, tmp_path / "r", samples_per_shard=100), tmp_path / "out")
    assert sorted(files(tmp_path / "out")) == ["held_out/00000.tar", "train/00000.tar"]


@pytest.mark.parametrize("path", MIXTURES, ids=lambda p: p.stem)
def test_mixtures_name_what_the_recipes_make(path: Path) -> None:
    for source in load_mixture(path).sources:
        built = (path.parent / str(source.shards)).resolve()
        recipe, _ = read_recipe(RECIPES / "domains" / f"{built.parent.name}.yaml")
        assert built.parent.parent == RECIPES.resolve() / "built"
        assert built.name in recipe.splits
        assert built.name == ("held_out" if path.stem.startswith("held_out") else "train")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"builder": "magic"}, "builder magic"),
        ({"sead": 1}, "sead"),
        ({"settings": {"minimum": 1}}, "settings.maximum"),
        ({"splits": {"test": 3}}, "splits.test"),
        ({"seed": "one"}, "seed"),
        ({"samples_per_shard": 0}, "samples_per_shard"),
    ],
)
def test_mistakes_are_named(changes: dict, named: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        build(small(RECIPES / "domains" / "text.yaml", tmp_path / "r", **changes), tmp_path / "out")
    assert any(named in problem and "text.yaml" in problem for problem in error.value.problems)


def test_a_missing_recipe_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no.yaml"):
        build(tmp_path / "no.yaml", tmp_path / "out")
