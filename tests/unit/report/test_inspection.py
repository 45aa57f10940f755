"""The page of ``data inspect --html``: its packs are those of a run, and show what their arrays hold."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from megatron_qwen3vl.batch import IGNORE
from megatron_qwen3vl.config.load import load_config
from megatron_qwen3vl.config.schema import RunConfig
from megatron_qwen3vl.data.inspect import open_path, packings
from megatron_qwen3vl.data.loader import Loader, LoaderConfig, PackCost
from megatron_qwen3vl.data.preview import first_packs, frames_of
from megatron_qwen3vl.data.shards import write_shard
from megatron_qwen3vl.data.vision import make_patches
from megatron_qwen3vl.data.workers import WorkerLimits
from megatron_qwen3vl.report.inspect import inspect_path
from megatron_qwen3vl.report.pack_view import MOST_TOKENS
from tests.unit.data.shard_helpers import (
    LIMITS,
    VISION,
    document,
    image_part,
    model,
    picture,
    tokenizer,
    video_part,
)
from tests.unit.report.report_run import Seen

T = tokenizer()
HOSTILE = '</i><script>alert(1)</script>"é'


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sources: documents with pictures and a video, among them a rare domain; and hostile text."""
    folder = tmp_path_factory.mktemp("mixture")
    seen = [document(f"before {i}", image_part("0.png"), "after", domain="seen") for i in range(40)]
    pairs = [(f"{i:03d}", {"json": content, "0.png": picture(64, 96)}) for i, content in enumerate(seen)]
    rare = document("a", video_part("0.png", "1.png", "2.png"), "rare end", domain="rare")
    pairs.append(("rare", {"json": rare, **{f"{i}.png": picture(40, 40, seed=i) for i in range(3)}}))
    pairs.append(("long", {"json": document("word " * 1500, domain="long")}))
    write_shard(folder / "pairs.tar", pairs)
    write_shard(folder / "texts.tar", [(f"{i:03d}", {"json": document(HOSTILE * 3)}) for i in range(30)])
    sources = "{name: pairs, shards: pairs.tar, weight: 3}, {name: texts, shards: texts.tar, weight: 1}"
    (folder / "mix.yaml").write_text(f"sources: [{sources}]")
    return folder / "mix.yaml"


def config(mixture: Path) -> RunConfig:
    stage = ["sequence_length=256", "global_batch_size=2", f"mixture={mixture}"]
    return replace(load_config([f"stages.s2.{setting}" for setting in stage]), model=model())


def test_packs_are_those_of_a_run(mixture: Path) -> None:
    run = config(mixture)
    sources, weights = open_path(mixture, T, LIMITS, run.model)
    choices, own = packings(run, mixture)
    assert own is not None and (own.stage, own.sequence_length) == ("s2", 256)
    assert {c.sequence_length for c in choices} >= {256, 8192, 32768, 262144}
    settings = LoaderConfig(
        seed=run.run.seed, stage="s2", sequence_length=256, global_batch_size=2, lookahead=run.data.lookahead,
        pad_id=T.pad_id, num_ranks=1, rank=0, vision_dp=1, workers=0, prefetch=0, pixels=True,
        limits=WorkerLimits(300.0, None), cost=PackCost(1, 1, 1),
    )  # fmt: skip
    loader = Loader(settings, sources, weights)
    trained = [pack for _ in range(2) for pack in loader.next().packs]
    shown = first_packs(sources, weights, own, 4, T.pad_id)
    for mine, theirs in zip(shown, trained, strict=True):
        assert mine.documents == theirs.documents and mine.lane == theirs.lane
        for name in ("input_ids", "labels", "positions", "cu_seqlens", "visual_index", "grids", "patches"):
            assert np.array_equal(vars(mine)[name], vars(theirs)[name]), name


def test_the_page_shows_what_the_packs_hold(mixture: Path, tmp_path: Path) -> None:
    text = inspect_path(mixture, config(mixture), T, LIMITS, tmp_path / "page.html")
    assert "samples                    42" in text and "262,144" in text
    page = (tmp_path / "page.html").read_text()
    seen = Seen(page)
    assert not {"script", "link", "iframe"} & {tag for tag, _ in seen.tags} and HOSTILE in "".join(seen.text.split("↵"))
    shares = {row["source"]: row for row in seen.table("source")}
    assert shares["pairs"]["share asked"] == "75.0 %" and shares["texts"]["samples"] == "30"
    lengths = [row["sequence length"] for row in seen.table("sequence length")]
    assert lengths == sorted(lengths, key=lambda length: int(length.replace(",", "")))
    assert "One sample of long" in seen.text
    # the rare sample: two groups of two frames, their stamps and positions
    rare = page[page.index("</b> pairs/pairs/rare") :]
    captions = [unescape(c) for c in re.findall(r"<figcaption>(.*?)</figcaption>", rare[: rare.index("</details>")])]
    assert len(captions) == 2 and all("two frames, <" in caption for caption in captions)
    # the long text is cut, and the rest counted
    long = page[page.index("One sample of long") :]
    long = long[: long.index("</section>")]
    assert len(re.findall(r"<i[ >]", long[long.index('class="t"') :])) <= MOST_TOKENS
    assert "text tokens and 0 pictures not shown" in long
    assert len(page) < 2_000_000


def test_predicted_tokens_are_those_with_labels(mixture: Path, tmp_path: Path) -> None:
    """Of the rare sample: the marked tokens, in order, are the labels."""
    run = config(mixture)
    inspect_path(mixture, run, T, LIMITS, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    rare = page[page.index("</b> pairs/pairs/rare") :]
    rare = rare[: rare.index("</details>")]
    marked = [int(i) for ids in re.findall(r'<i class="p[^"]*" title="([\d ]+)"', rare) for i in ids.split()]
    sources, _ = open_path(mixture, T, LIMITS, run.model)
    row = next(row for row in range(len(sources[0])) if sources[0].domain(row) == "rare")
    labels = sources[0].read(row, pixels=False).labels
    assert marked == labels[labels != IGNORE].tolist()
    assert "labels are not the next token" not in page


def test_a_picture_is_what_its_patches_hold(mixture: Path, tmp_path: Path) -> None:
    frames = [np.random.default_rng(seed).integers(0, 256, (64, 96, 3), dtype=np.uint8) for seed in range(2)]
    patches = make_patches(frames, (1, 4, 6), VISION)
    assert np.array_equal(frames_of(patches, 4, 6, VISION), np.stack(frames))
    inspect_path(mixture, config(mixture), T, LIMITS, tmp_path / "page.html")
    pictures = re.findall(r'src="data:image/(\w+);base64,([^"]+)"', (tmp_path / "page.html").read_text())
    shown = [np.array(Image.open(io.BytesIO(base64.b64decode(data)))) for kind, data in pictures if kind == "png"]
    original = np.array(Image.open(io.BytesIO(picture(64, 96))))
    assert any(np.array_equal(pixels, original) for pixels in shown)  # 64 x 96 needs no resizing


def test_a_folder_in_which_nothing_fits_or_works_has_a_page(tmp_path: Path, mixture: Path) -> None:
    write_shard(tmp_path / "0.tar", [("0", {"json": b"{}"})])
    text = inspect_path(tmp_path / "0.tar", config(mixture), T, LIMITS, tmp_path / "page.html")
    assert "cannot be used" in text and "no packs" in text
    assert "missing member" in Seen((tmp_path / "page.html").read_text()).text
