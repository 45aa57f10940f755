"""The page of a run: its figures against those that were put in, whatever is missing or hostile."""

from __future__ import annotations

import base64
import json
import math
import shutil
from pathlib import Path

import pytest
import yaml

from megatron_qwen3vl.cli import main
from megatron_qwen3vl.errors import UserError
from megatron_qwen3vl.report.files import number
from megatron_qwen3vl.report.page import write_report
from tests.unit.report.report_run import CONFIG, Seen, metrics_row, write_lines, write_run

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>&amp;\'é'


def see(folder: Path) -> Seen:
    return Seen(write_report(folder).read_text(encoding="utf-8"))


def test_stage_figures(tmp_path: Path) -> None:
    page = see(write_run(tmp_path / "run"))
    s0, s1 = page.table("stage")
    assert s0 == {
        "stage": "s0",
        "steps": "4 of 4",
        "sequence": "64",
        "trainable": "merger",
        "tokens": "400",
        "with loss": "160",
        "first loss": "3.7500",
        "last loss": "3.0000",
        "tokens/s": "200",
        "padding": "25.00 %",
        "time": "0m02s",
        "skipped": "0",
        "failed": "0",
    }
    assert (s1["steps"], s1["tokens/s"], s1["skipped"]) == ("6 of 6", "400", "1")  # 700 tokens are six steps of 128
    assert (s1["first loss"], s1["last loss"]) == ("2.8750", "2.2500")
    assert "10 updates in s0, s1 over 1,600 tokens" in page.text
    assert "went from 3.7500 to 2.2500" in page.text
    assert "last held-out loss is 2.5000" in page.text
    assert "All stages are done." in page.text


def test_shares_checkpoints_skipped_and_bad(tmp_path: Path) -> None:
    page = see(write_run(tmp_path / "run"))
    assert page.table("domain") == [
        {"domain": "ocr", "s0": "25.0 %", "s1": "25.0 %", "tokens with loss": "100"},
        {"domain": "text", "s0": "75.0 %", "s1": "75.0 %", "tokens with loss": "300"},
    ]
    (checkpoint,) = page.table("checkpoint")
    assert (checkpoint["checkpoint"], checkpoint["updates behind it"]) == ("s0/step_00000004", "4")
    assert checkpoint["size"] == "2.0 MB"
    assert page.table("reason") == [{"reason": "the loss is not finite", "steps": "1"}]
    assert page.table("source") == [{"source": "photos", "times named": "2"}]
    assert "a/b/1, a/b/2" in page.text and "photos/x/20.jpg: no image" in page.text


def test_the_page_stands_alone(tmp_path: Path) -> None:
    page = see(write_run(tmp_path / "run"))
    forbidden = {"script", "link", "img", "iframe", "object", "embed", "image", "use"}
    assert not forbidden & {tag for tag, _ in page.tags}
    attributes = {name for _, attributes in page.tags for name in attributes}
    assert not {"src", "href", "xlink:href", "srcset"} & attributes
    text = (tmp_path / "run" / "report.html").read_text()
    assert not [word for word in ("http:", "https:", "url(", "@import", "//") if word in text]


def test_curves_have_every_stage(tmp_path: Path) -> None:
    page = see(write_run(tmp_path / "run"))
    labels = [attributes["aria-label"] for tag, attributes in page.tags if tag == "svg"]
    first = ["Loss", "Gradient norm", "Learning rate", "Tokens per second", "Padding, share of positions"]
    assert labels == [*first, "ocr", "text"]


def with_everything(run: Path, name: str = "web") -> None:
    """Phases, sources, starts and answers, as a run of today leaves them; ``name`` wherever data names something."""
    more = {"vision_balance": 1.5, "data_seconds": 0.05, "model_seconds": 0.25, "optimizer_seconds": 0.1}
    more |= {"save_seconds": 0.25, "memory_bytes": 3 * 2**30, "sources": {name: 25, "b": 75}}
    row = {**metrics_row("s0", 1), **more}
    row["domains"] = {name: {"loss": 2.0, "token_loss": 3.0, "loss_tokens": 5}}
    write_lines(run / "metrics.jsonl", [row, {**row, "step": 2}])
    start = {"time": name, "job_begins": True, "stage": "s0", "step": 0, "checkpoint": None, "device": name}
    start |= {"layout": {"world_size": 4, "dp": 2, "tp": 2, "sp": False}, "shares": {name: 0.5, "b": 0.5}}
    write_lines(run / "starts.jsonl", [start, {**start, "step": 1, "checkpoint": f"/x/{name}"}])
    picture = base64.b64encode(b"\x89PNG").decode()
    sample = {"task": name, "picture": picture, "question": name, "right": name, "model": name, "correct": True}
    odd = [{"picture": name}, {"picture": "AAAA" * 100_000, "correct": [1]}, 7, {"task": 3, "correct": False}]
    score = {"task": name, "measure": name, "own": 0.825, "exchanged": 0.01, "questions": 500}
    (run / "demo.json").write_text(json.dumps({"scores": [score, None, {}], "samples": [sample, *odd]}))


def test_phases_sources_starts_and_answers(tmp_path: Path) -> None:
    with_everything(write_run(tmp_path / "run"))
    page = see(tmp_path / "run")
    first, second = page.table("source")
    assert (first["source"], first["s0"], first["tokens"]) == ("b", "50.0 % / 75.0 %", "150")
    assert (second["source"], second["s0"]) == ("web", "50.0 % / 25.0 %")
    starts = page.table("time (UTC)")
    assert [row["from"] for row in starts] == ["s0 step 0", "s0 step 1"] and starts[1]["checkpoint"] == "web"
    assert starts[0]["layout"] == "4 processes on web: dp 2, tp 2" and "It was started 2 times." in page.text
    score = page.table("task")[0]
    assert (score["its own picture"], score["another's picture"], score["questions"]) == ("0.825", "0.01", "500")
    phases = next(table for table in page.tables if "waiting for data" in table[0])[1]
    assert phases == ["s0", "0m01s", "10.0 %", "50.0 %", "20.0 %", "20.0 %", "0m00s", "3 GiB"]
    pictures = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert pictures == ["data:image/png;base64," + base64.b64encode(b"\x89PNG").decode()]
    drawn = [attributes["aria-label"] for tag, attributes in page.tags if tag == "svg"]
    more = {"Seconds of a step", "Peak memory of the writing rank, GiB", "Busiest rank in the ViT over the mean"}
    assert more <= set(drawn)


def test_what_a_run_of_today_leaves_is_escaped(tmp_path: Path) -> None:
    with_everything(write_run(tmp_path / "run"), HOSTILE)
    page = see(tmp_path / "run")
    assert "script" not in {tag for tag, _ in page.tags} and page.text.count(HOSTILE) > 10
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]


def test_everything_from_data_is_escaped(tmp_path: Path) -> None:
    run = tmp_path / "<i>run&"
    write_run(run)
    (run / "config.yaml").write_text(
        yaml.safe_dump({**CONFIG, "dtype": HOSTILE, "run": {"stages": [HOSTILE], "seed": HOSTILE}, HOSTILE: HOSTILE})
    )
    rows = [metrics_row(HOSTILE, step, domains={HOSTILE: {"loss": 1.0, "loss_tokens": 5}}) for step in (1, 2)]
    write_lines(run / "metrics.jsonl", rows)
    bad = {"source": HOSTILE, "key": HOSTILE, "reason": HOSTILE, "stage": HOSTILE, "step": HOSTILE}
    write_lines(run / "quarantine.jsonl", [bad])
    write_lines(run / "skipped.jsonl", [{**bad, "keys": [HOSTILE]}])
    (run / "checkpoints" / "s0").rename(run / "checkpoints" / "<script>s0")
    page = see(run)
    assert not {"script", "i", "img"} & {tag for tag, attributes in page.tags if "style" not in attributes}
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert page.text.count(HOSTILE) > 10
    assert "<script>s0/step_00000004" in page.text


@pytest.mark.parametrize(
    "missing",
    ["config.yaml", "metrics.jsonl", "validation.jsonl", "skipped.jsonl", "quarantine.jsonl", "checkpoints"],
)
def test_a_missing_file_is_fine(missing: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    path = run / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    page = see(run)
    assert ("no steps yet" in page.text) == (missing == "metrics.jsonl")


def test_an_empty_run_says_so(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("")
    page = see(tmp_path)
    assert "This run has no steps yet." in page.text and not [tag for tag, _ in page.tags if tag == "svg"]


def test_a_run_that_goes_on(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    write_lines(run / "metrics.jsonl", [metrics_row("s0", 1), metrics_row("s0", 2)])
    with (run / "metrics.jsonl").open("a") as handle:
        handle.write('{"stage": "s0", "st')
    page = see(run)
    assert "It stands at s0 step 2; there is more to do." in page.text and "could not be read" not in page.text


def test_a_single_step(tmp_path: Path) -> None:
    write_lines(tmp_path / "metrics.jsonl", [metrics_row("s0", 1)])
    assert [tag for tag, _ in see(tmp_path).tags].count("svg") == 7


def test_a_run_without_a_single_loss(tmp_path: Path) -> None:
    write_lines(tmp_path / "metrics.jsonl", [metrics_row("s0", 1, None, grad_norm=None, domains={})])
    assert see(tmp_path).table("stage")[0]["last loss"] == "–"


@pytest.mark.parametrize(
    "line",
    [
        b"not json",
        b"[1, 2]",
        b"\xff\xfe",
        b'{"stage": ["s0"], "step": "x", "loss": "2", "domains": [1], "tokens": true}',
        b'{"stage": "s0", "step": NaN, "loss": NaN, "grad_norm": Infinity, "domains": {"a": 1, "b": {"loss": NaN}}}',
        b'{"stage": "s0", "step": 1, "loss": 1e999, "domains": {"\\udc80": {"loss": 1, "loss_tokens": 1}}}',
        b"[" * 100_000,
        b"{}",
    ],
)
def test_odd_lines_do_no_harm(line: bytes, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    for name in ("metrics.jsonl", "validation.jsonl", "skipped.jsonl", "quarantine.jsonl"):
        with (run / name).open("ab") as handle:
            handle.write(line + b"\n")
    page = see(run)
    assert page.table("stage")[0]["last loss"] == "3.0000"
    unreadable = not line.startswith(b"{")
    assert ("metrics.jsonl: 1 lines could not be read" in page.text) == unreadable


def test_only_numbers_are_figures() -> None:
    assert [number(value) for value in (2, 2.5)] == [2.0, 2.5]
    assert all(math.isnan(number(value)) for value in (True, None, "3", [3]))


def test_a_configuration_that_is_none(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    for text in ("a: [", "- 1\n", "\0", "run: 5\nstages: []\nmodel: {text_config: {num_hidden_layers: {}}}"):
        (run / "config.yaml").write_text(text)
        assert see(run).table("stage")[0]["last loss"] == "3.0000"


def test_a_long_run_stays_small(tmp_path: Path) -> None:
    rows = [metrics_row(f"s{i // 5000}", i % 5000 + 1, 2 + (i % 7) / 7) for i in range(20_000)]
    write_lines(tmp_path / "metrics.jsonl", rows)
    listed = [{"source": f"source {i}", "key": "k", "reason": "x" * 5000, "stage": "s0", "step": i} for i in range(999)]
    write_lines(tmp_path / "quarantine.jsonl", listed)
    page = see(tmp_path)
    assert (tmp_path / "report.html").stat().st_size < 200_000
    assert len(page.table("source")) == 20 and "The first 20 of 999." in page.text


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("name: something else\n")
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UserError, match="holds no run"):
            write_report(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run")
    assert main(["report", str(run)]) == 0
    assert (run / "report.html").is_file()
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[0])["step"] == 1  # reads only
    assert main(["report", str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err
