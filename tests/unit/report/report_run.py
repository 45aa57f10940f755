"""A run's folder made by hand, and what a browser would see of a page."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import yaml

VOID = {"meta", "br", "hr", "img", "link", "input"}
CONFIG = {
    "run": {"stages": ["s0", "s1"], "seed": 7},
    "dtype": "float32",
    "loss": {"exponent": 0.5},
    "model": {
        "text_config": {"num_hidden_layers": 3, "hidden_size": 32, "vocab_size": 1024, "num_experts": 0},
        "vision_config": {"depth": 4, "hidden_size": 16},
    },
    "stages": {
        "s0": {"steps": 4, "tokens": None, "sequence_length": 64, "global_batch_size": 2, "trainable": ["merger"]},
        "s1": {"steps": None, "tokens": 700, "sequence_length": 128, "global_batch_size": 1, "trainable": ["vision"]},
    },
}


def metrics_row(stage: str, step: int, loss: float | None = 2.0, **more: object) -> dict:
    row = {
        "stage": stage,
        "step": step,
        "loss": loss,
        "token_loss": loss,
        "aux_loss": None,
        "expert_load": None,
        "grad_norm": 1.0,
        "learning_rate": 1e-3,
        "samples": 5,
        "failed_samples": 0,
        "left_out": 0,
        "tokens": 100,
        "loss_tokens": 40,
        "padding_fraction": 0.25,
        "skipped": loss is None,
        "domains": {"text": {"loss": loss, "loss_tokens": 30}, "ocr": {"loss": loss, "loss_tokens": 10}},
        "seconds": 0.5,
    }
    assert more.keys() <= row.keys()
    return {**row, **more}


def write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_run(folder: Path) -> Path:
    """Four steps of s0 and six of s1 (one of them skipped), held-out losses, two bad samples, one checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    s0 = [metrics_row("s0", step, 4.0 - step / 4) for step in range(1, 5)]
    s1 = [metrics_row("s1", step, None if step == 2 else 3.0 - step / 8, tokens=200) for step in range(1, 7)]
    write_lines(folder / "metrics.jsonl", [*s0, *s1])
    held_out = {"loss": 2.5, "domains": {"text": {"loss": 2.25, "loss_tokens": 9}}}
    write_lines(
        folder / "validation.jsonl", [{"stage": "s0", "step": 4, **held_out}, {"stage": "s1", "step": 3, **held_out}]
    )
    reason = "the loss is not finite"
    write_lines(folder / "skipped.jsonl", [{"stage": "s1", "step": 2, "reason": reason, "keys": ["a/b/1", "a/b/2"]}])
    bad = {"source": "photos", "key": "photos/x/1", "reason": "0.jpg: no image", "stage": "s0", "step": 1}
    write_lines(folder / "quarantine.jsonl", [bad, {**bad, "key": "photos/x/2"}])
    checkpoint = folder / "checkpoints" / "s0" / "step_00000004"
    (checkpoint / "tensors").mkdir(parents=True)
    (checkpoint / "state.json").write_text(json.dumps({"format": 1, "state": {"total_steps": 4}}))
    (checkpoint / "tensors" / "0.distcp").write_bytes(bytes(2_000_000))
    return folder


class Seen(HTMLParser):
    """Elements, tables and text of a page; complains about a tag that is closed wrongly."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.tables: list[list[list[str]]] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == [], self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        if "style" in self._open:
            return
        self.text += data
        if "table" in self._open:
            self.tables[-1][-1][-1] += data

    def table(self, first_head: str) -> list[dict[str, str]]:
        """The rows of the first table whose first column has this head."""
        found = next(table for table in self.tables if table[0][0] == first_head)
        return [dict(zip(found[0], row, strict=True)) for row in found[1:]]
