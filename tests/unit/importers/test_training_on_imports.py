"""What every importer of texts, pairs, documents and videos wrote trains together, and no sample of it fails."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from faults_data import OVERRIDES
from text_and_media_sets import (
    mmc4_row,
    run,
    write_activitynet,
    write_jsonl,
    write_mmc4,
    write_obelics,
    write_pairs,
    write_pdfs,
)

from megatron_qwen3vl.config.load import load_config
from megatron_qwen3vl.train.pretrain import pretrain


def imported(folder: Path) -> list[str]:
    """The folders of shards of a small import of each format."""
    sets = folder / "sets"
    sets.mkdir()
    write_pairs(sets / "pairs")
    images = write_obelics(sets / "obelics", [["before", n, "after"] for n in range(6)], 6)
    rows = [mmc4_row(["One.", "Two."], [("a.jpg", 1, 0.3)])] * 6
    files = write_mmc4(sets / "mmc4", rows, ["a.jpg"])
    write_pdfs(sets / "pdf", [2, 1])
    write_activitynet(sets / "activitynet", 2)
    write_jsonl(sets / "texts.jsonl", [f"A text {n}." for n in range(10)])
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes."}]
    pq.write_table(pa.table({"messages": [chat] * 10}), sets / "chats.parquet")
    for name, source, words in (
        ("jsonl", "texts.jsonl", ()),
        ("parquet", "chats.parquet", ()),
        ("pairs", "pairs", ()),
        ("obelics", "obelics", (f"images={images}",)),
        ("mmc4", "mmc4", (f"images={files}",)),
        ("pdf", "pdf", ("dpi=36",)),
        ("activitynet", "activitynet/captions.json", (f"videos={sets / 'activitynet' / 'videos'}",)),
    ):
        run(name, sets / source, folder / name, "held_out=0", *words)
    return [path.parent.name for path in sorted(folder.glob("*/import"))]


def test_a_mixture_of_all_of_them_trains(tmp_path: Path) -> None:
    names = imported(tmp_path)
    assert len(names) == 7
    sources = [
        {"name": name, "shards": f"{name}/train", "weight": 1.0, "min_pixels": 1024, "max_pixels": 8192}
        for name in names
    ]
    (tmp_path / "mixture.yaml").write_text(yaml.safe_dump({"sources": sources}))
    steps = 4
    overrides = [
        *OVERRIDES, f"run.dir={tmp_path / 'run'}", "run.stages=[s1]", "data.workers=0", "run.trace_samples=true",
        f"stages.s1.mixture={tmp_path / 'mixture.yaml'}", f"stages.s1.steps={steps}", "stages.s1.sequence_length=512",
        "stages.s1.global_batch_size=3", "checkpoint.every=4",
    ]  # fmt: skip
    pretrain(load_config(overrides))
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == steps and all(0 < row["loss"] < 20 for row in rows)
    traced = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    used = {key.split("/")[0] for row in traced for key in row["keys"]}
    assert used == set(names)
    quarantine = tmp_path / "run" / "quarantine.jsonl"
    assert not quarantine.exists() or not quarantine.read_text()
