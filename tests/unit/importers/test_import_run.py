"""The frame: shards and splits, keys of the command, going on after kill -9, and what the command says."""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import os
import signal
import time
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from shard_helpers import tokenizer
from text_and_media_sets import named, run, webdataset_samples, write_jsonl, write_pdfs

from megatron_qwen3vl.cli import main
from megatron_qwen3vl.data.timestamps import choose_style
from megatron_qwen3vl.errors import BadSample, UserError
from megatron_qwen3vl.importers.files import sample
from megatron_qwen3vl.importers.frame import Entry, Format, Made, Unwanted, clean_key, needs, option, required
from megatron_qwen3vl.importers.registry import FORMATS
from megatron_qwen3vl.importers.run import Import, is_held_out, run_import
from megatron_qwen3vl.importers.settings import CommonSettings, describe, read_settings
from megatron_qwen3vl.importers.text_rows import TextSettings


def digests(folder: Path) -> dict[str, str]:
    """Of all files but the lock."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "lock")
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@dataclass(frozen=True)
class CountSettings:
    count: int = option(100, "entries")


@dataclass
class Counting:
    """A format that counts what is made; every 7th entry is bad, every 11th unwanted, every 13th has a note."""

    made: Counter[str] = field(default_factory=Counter)
    stop_at: int | None = None

    def format(self) -> Format:
        return Format("counting", "for tests", "anything", CountSettings, self.read)

    def read(self, source: Path, settings: CountSettings) -> Iterator[Entry]:
        for number in range(settings.count):
            yield Entry(f"{number:04d}", partial(self.make, number), part=number / settings.count)

    def make(self, number: int) -> Made:
        if number == self.stop_at:
            raise KeyboardInterrupt
        self.made[f"{number:04d}"] += 1
        if number % 7 == 3:
            raise BadSample(f"number {number} is bad")
        if number % 11 == 5:
            raise Unwanted("eleven")
        notes = ["thirteen"] if number % 13 == 1 else []
        return sample({"content": [{"type": "text", "text": f"number {number}"}]}, {}, notes)

    def run(self, out: Path, *words: str):
        common, settings = read_settings((CommonSettings, CountSettings), words)
        return run_import(Import(self.format(), Path("."), out, settings, common), lambda _: None)


WORDS = ("shard_samples=10", "held_out=0.3")


def test_goes_on_without_making_anything_twice(tmp_path: Path) -> None:
    """Stopped at every tenth entry, in either split: the same files, the same logs, the same totals."""
    whole = Counting()
    expected = whole.run(tmp_path / "whole", *WORDS)
    for stop in range(0, 100, 9):
        interrupted = Counting(stop_at=stop)
        with pytest.raises(KeyboardInterrupt):
            interrupted.run(tmp_path / f"{stop}", *WORDS)
        kept = {path: path.stat().st_ino for path in (tmp_path / f"{stop}").rglob("*.tar")}
        assert not list((tmp_path / f"{stop}").rglob(".*.tar.*"))
        again = Counting()
        summaries = again.run(tmp_path / f"{stop}", *WORDS)
        assert digests(tmp_path / f"{stop}") == digests(tmp_path / "whole")
        assert [summary.mark for summary in summaries] == [summary.mark for summary in expected]
        assert all(path.stat().st_ino == number for path, number in kept.items())
        done = {key for tar in kept for key in webdataset_samples(tar.parent) if tar.parent.name == "train"}
        assert not {key for key in done if int(key) < stop - 30} & set(again.made)  # made anew: at most a shard's
    assert max(whole.made.values()) == 1 and len(whole.made) == 100
    assert Counting().run(tmp_path / "whole", *WORDS) and digests(tmp_path / "whole") == digests(tmp_path / "0")


def test_everything_is_somewhere_once(tmp_path: Path) -> None:
    summaries = Counting().run(tmp_path, *WORDS)
    keys = [set(webdataset_samples(tmp_path / split)) for split in ("train", "held_out")]
    bad = {f"{n:04d}" for n in range(100) if n % 7 == 3}
    unwanted = {f"{n:04d}" for n in range(100) if n % 11 == 5} - bad
    assert not keys[0] & keys[1] and keys[0] | keys[1] == {f"{n:04d}" for n in range(100)} - bad - unwanted
    assert len(keys[1]) == pytest.approx(25, abs=10)
    assert sum(summary.mark.left_out for summary in summaries) == len(bad)
    assert sum(summary.mark.unwanted["eleven"] for summary in summaries) == len(unwanted)
    reasons = named(summaries[0]) | named(summaries[1])
    assert set(reasons) >= bad and sum(reason == "thirteen" for reason in reasons.values()) == 8 - 1 - 1


def test_the_split_is_the_key_s_and_nothing_else(tmp_path: Path) -> None:
    Counting().run(tmp_path / "a", *WORDS)
    Counting().run(tmp_path / "b", "held_out=0.3", "count=50", "shard_samples=7")
    held = {name: set(webdataset_samples(tmp_path / name / "held_out")) for name in "ab"}
    assert held["b"] == {key for key in held["a"] if int(key) < 50}
    Counting().run(tmp_path / "c", "held_out=0.6")
    assert held["a"] < set(webdataset_samples(tmp_path / "c" / "held_out"))
    # the way in which a held-out video's times are written must not follow from its being held out
    chosen = [f"{n}" for n in range(20_000) if is_held_out(f"{n}", 0.01)]
    assert 150 < len(chosen) < 250
    assert 0.35 < sum(choose_style("mixed", key) == "clock" for key in chosen) / len(chosen) < 0.65


def test_shards_by_size_and_a_limit(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", ["x" * 100] * 50)
    run("jsonl", tmp_path / "a.jsonl", tmp_path / "out", "held_out=0", "shard_bytes=1000", "limit=40")
    shards = [webdataset_samples(path) for path in sorted((tmp_path / "out").glob("train"))]
    sizes = Counter()
    for path in sorted((tmp_path / "out" / "train").glob("*.tar")):
        (tmp_path / "one").mkdir(exist_ok=True)
        (tmp_path / "one" / "0.tar").write_bytes(path.read_bytes())
        sizes[len(webdataset_samples(tmp_path / "one"))] += 1
    assert len(shards[0]) == 40 and set(sizes) == {7, 40 % 7}


def test_a_key_twice_in_a_shard_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": str(n), "id": n // 2}) + "\n" for n in range(8)))
    (summary,) = run("jsonl", tmp_path / "a.jsonl", tmp_path / "out", "held_out=0", "key=id")
    assert list(webdataset_samples(tmp_path / "out" / "train")) == ["0", "1", "2", "3"]
    assert summary.mark.left_out == 4 and set(named(summary).values()) == {"the key is there twice"}


def test_a_shard_that_was_lost_is_made_again(tmp_path: Path) -> None:
    Counting().run(tmp_path / "a", *WORDS)
    before = digests(tmp_path / "a")
    (tmp_path / "a" / "train" / "00002.tar").unlink()
    again = Counting()
    again.run(tmp_path / "a", *WORDS)
    assert digests(tmp_path / "a") == before and 0 < len(again.made) < 70


def test_other_settings_are_refused_and_no_shard_is_touched(tmp_path: Path) -> None:
    Counting().run(tmp_path / "a", *WORDS)
    before = digests(tmp_path / "a")
    with pytest.raises(UserError) as error:
        Counting().run(tmp_path / "a", "shard_samples=11", "held_out=0.3", "count=50")
    assert ["shard_samples=10" in line or "count=100" in line for line in error.value.problems] == [True, True]
    (tmp_path / "b" / "train").mkdir(parents=True)
    (tmp_path / "b" / "train" / "00000.tar").write_bytes(b"somebody's")
    with pytest.raises(UserError, match="is not of this import"):
        Counting().run(tmp_path / "b", *WORDS)
    assert digests(tmp_path / "a") == before and len(digests(tmp_path / "b")) == 1
    # a mistake that gave no shard can be mended in place
    write_jsonl(tmp_path / "x.jsonl", ["a"])
    with pytest.raises(UserError):
        run("jsonl", tmp_path / "x.jsonl", tmp_path / "c", "field=body")
    run("jsonl", tmp_path / "x.jsonl", tmp_path / "c", "field=text", "held_out=0")


def _import_pdfs(source: Path, out: Path) -> None:
    run("pdf", source, out, *PDF_WORDS)


PDF_WORDS = ("dpi=60", "pages=1", "shard_samples=6", "held_out=0.3")


def test_kill_9(tmp_path: Path) -> None:
    """Killed while it writes a shard, again and again: whole shards are kept, the result is the same, byte for byte."""
    write_pdfs(tmp_path / "in", [3] * 20)
    _import_pdfs(tmp_path / "in", tmp_path / "whole")
    expected, out = digests(tmp_path / "whole"), tmp_path / "out"
    fork, partials = multiprocessing.get_context("fork"), 0
    for kills in range(1, 8):
        process = fork.Process(target=_import_pdfs, args=(tmp_path / "in", out))
        process.start()
        while process.is_alive() and not (len(list(out.rglob("*.tar"))) >= kills and list(out.rglob(".*.tar.*"))):
            time.sleep(0.001)
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        partials += bool(list(out.rglob(".*.tar.*")))
        found = digests(out)
        assert all(expected[name] == digest for name, digest in found.items() if name.endswith(".tar"))
    kept = {path: path.stat().st_ino for path in out.rglob("*.tar") if not path.name.startswith(".")}
    assert partials >= 3 and 3 <= len(kept) < sum(name.endswith(".tar") for name in expected)
    _import_pdfs(tmp_path / "in", out)
    assert digests(out) == expected and all(path.stat().st_ino == number for path, number in kept.items())


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    inner: list[str] = []

    class Nested(Counting):
        def make(self, number: int) -> Made:
            if not inner:
                inner.append("")
                with pytest.raises(UserError, match="another import is writing"):
                    Counting().run(tmp_path, *WORDS)
            return super().make(number)

    Nested().run(tmp_path, *WORDS)
    assert inner


@pytest.mark.parametrize(
    "name", ["a.b", "", "ä ö", "../x", "/x", "a//b", "a/", ".hidden", "x y", "漢字", "a" * 300, "a\x00b", "\udcff"]
)
def test_keys_are_read_back_as_one_sample(tmp_path: Path, name: str) -> None:
    key = clean_key(name)
    reader = Format("x", "", "", CountSettings, lambda s, _: iter([Entry(key, partial(Counting().make, 0))]))
    run_import(Import(reader, tmp_path, tmp_path / "out", CountSettings(), CommonSettings(held_out=0)), lambda _: None)
    assert list(webdataset_samples(tmp_path / "out" / "train")) == [key]
    assert not key.startswith(("/", ".")) and ".." not in key


def test_keys_of_different_names_differ() -> None:
    names = ["a.b", "a_b", "a b", "a..b", "a/b", "a//b", "", ".", "..", "/", "a.b/c", "a_b/c"]
    assert len({clean_key(name) for name in names}) == len(names)
    assert clean_key("en/part-0001") == "en/part-0001"


@dataclass(frozen=True)
class AllKinds:
    images: str = required("folder")
    number: int = option(3, "n")
    share: float | None = option(None, "s")
    names: tuple[str, ...] = option(("a", "b"), "names")
    truth: bool = option(True, "t")


def test_keys_of_the_command() -> None:
    words = ["images=x=y", "number=1_000", "share=1e-3", "names=c,d", "truth=no", "limit=5"]
    common, made = read_settings((CommonSettings, AllKinds), words)
    assert made == AllKinds("x=y", 1000, 1e-3, ("c", "d"), False) and common == CommonSettings(limit=5)
    assert read_settings((AllKinds,), ["images=x", "share=null"])[0] == AllKinds("x")
    with pytest.raises(UserError) as error:
        read_settings((CommonSettings, AllKinds), ["nmber=3", "number=x", "truth=maybe", "shard_samples=0", "limit=-1"])
    keys = [line.split(":")[0] for line in error.value.problems]
    assert keys == ["nmber=3", "shard_samples", "limit", "images", "number", "truth"]
    assert describe(AllKinds)[0].split() == ["images=(needed)", "folder"]


def test_memory_does_not_grow_with_the_source(tmp_path: Path) -> None:
    """One shard of 5 MB out of 40 MB: of lines, and of one row group of Parquet."""
    texts = [f"{number:010d}" * 1_000 for number in range(4_000)]
    write_jsonl(tmp_path / "a.jsonl", texts)
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", use_dictionary=False, compression="none")
    pool = pa.default_memory_pool()
    for name in ("jsonl", "parquet"):
        chosen, common, settings = FORMATS[name], CommonSettings(held_out=0, limit=500), TextSettings()
        task = Import(chosen, tmp_path / f"a.{name}", tmp_path / name, settings, common)
        before, arrow = pool.bytes_allocated(), [0]
        tracemalloc.start()
        (summary,) = run_import(task, lambda _, most=arrow: most.append(pool.bytes_allocated()))
        _, python = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert summary.mark.num_bytes > 5_000_000 and summary.mark.shards == 1
        # a page of Parquet here has 10 MB, the column 40 MB
        assert python < 2_000_000 and max(arrow) - before < 20_000_000, (name, python, max(arrow) - before)


def test_a_library_that_is_not_there_is_named_with_its_extra() -> None:
    with pytest.raises(UserError, match=r"Parquet needs surely_no_library: pip install 'megatron_qwen3vl\[import\]'"):
        needs("surely_no_library", "Parquet")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Imports, indexes, and `data inspect` counts what was imported."""
    texts = [f"Document {n} of a few words." for n in range(40)]
    write_jsonl(tmp_path / "a.jsonl", texts)
    with open(tmp_path / "a.jsonl", "a") as file:
        file.write("no JSON\n")
    words = ["data", "import", "jsonl", str(tmp_path / "a.jsonl"), str(tmp_path / "out")]
    assert main([*words, "held_out=0.2", "shard_samples=10"]) == 0
    out, err = capsys.readouterr()
    assert "train/00000: 10 samples" in out and "1 left out" in err and "line 41" in err
    assert {path.name for path in (tmp_path / "out" / "train").glob("*.idx")} >= {"00000.tar.idx", "00001.tar.idx"}
    before = digests(tmp_path / "out")
    assert main([*words, "held_out=0.2", "shard_samples=10", "index=no"]) == 0  # nothing is left to do
    capsys.readouterr()
    assert digests(tmp_path / "out") == before
    assert main(["data", "inspect", str(tmp_path / "out" / "train")]) == 0
    samples = [len(webdataset_samples(tmp_path / "out" / split)) for split in ("train", "held_out")]
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert sum(samples) == 40 and ["samples", str(samples[0])] in rows
    kept = [each["json"]["content"][0]["text"] for each in webdataset_samples(tmp_path / "out" / "train").values()]
    tokens = sum(len(tokenizer().encode(text)) + 1 for text in kept)  # each document ends with a token of its own
    assert ["tokens", str(tokens)] in rows


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "usage"),
        (["jsonl", "a"], "usage"),
        (["nothing", "a", "b"], "no such format"),
        (["jsonl", "nowhere.jsonl", "out"], "nowhere.jsonl: no such file"),
        (["jsonl", "a.jsonl", "out", "fild=x", "held_out=1"], "fild=x: no such key"),
        (["jsonl", "a.jsonl", "out", "--fast"], "--fast"),
        (["jsonl", "a.jsonl", "out", "field=body"], "'body'"),
        (["jsonl", "empty.jsonl", "out"], "gave no sample"),
    ],
)
def test_mistakes_exit_with_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "a.jsonl", ["x"])
    (tmp_path / "empty.jsonl").write_text("\n")
    assert main(["data", "import", *words]) == 2
    err = capsys.readouterr().err
    assert said in err and len(err.splitlines()) <= 15


def test_help_lists_every_format_with_its_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "import", "--help"]) == 0
    shown = capsys.readouterr().out
    for each in FORMATS.values():
        assert f"\n{each.name}: " in shown
        assert main(["data", "import", each.name, "--help"]) == 0
        own = capsys.readouterr().out
        for line in [*describe(each.settings), *describe(CommonSettings)]:
            assert line in shown and line in own
