"""Lines of JSON and Parquet: the texts come back as json and pyarrow themselves read them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from text_and_media_sets import named, run, webdataset_samples

from megatron_qwen3vl.errors import UserError

TEXTS = ["One.", "Ünïcode 漢字 <|im_end|>", "Two\nlines", "x" * 50]
CHAT = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Yes."},
]


def body(text: str) -> dict:
    return {"content": [{"type": "text", "text": text}], "domain": "text"}


def test_lines_of_json(tmp_path: Path) -> None:
    lines = [json.dumps({"text": words}) for words in TEXTS] + [json.dumps({"messages": CHAT, "text": None})]
    (tmp_path / "a.jsonl").write_text("\n".join([*lines, ""]))
    run("jsonl", tmp_path / "a.jsonl", tmp_path / "out", "held_out=0")
    found = webdataset_samples(tmp_path / "out" / "train")
    written = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert list(found) == [f"a_{number:07d}" for number in range(1, 6)]
    assert [each["json"] for each in found.values()][:4] == [body(row["text"]) for row in written[:4]]
    assert found["a_0000005"]["json"] == {"messages": written[4]["messages"], "domain": "text"}


def test_a_folder_of_packed_files_keeps_its_order(tmp_path: Path) -> None:
    for folder, words in (("b", "from b"), ("a", "from a")):
        (tmp_path / "in" / folder).mkdir(parents=True)
        with gzip.open(tmp_path / "in" / folder / "part.0.json.gz", "wt") as file:
            file.write(json.dumps({"content": words, "id": 7}) + "\n")
    run("jsonl", tmp_path / "in", tmp_path / "out", "held_out=0", "field=content", "domain=web")
    found = webdataset_samples(tmp_path / "out" / "train")
    assert [each["json"] for each in found.values()] == [body(w) | {"domain": "web"} for w in ("from a", "from b")]
    assert all(key.startswith(f"{folder}/part_0_") for key, folder in zip(found, "ab", strict=True))
    run("jsonl", tmp_path / "in", tmp_path / "keyed", "held_out=0", "field=content", "key=id", "shard_samples=1")
    assert set(webdataset_samples(tmp_path / "keyed" / "train")) == {"7"}  # in two shards: allowed


def test_parquet(tmp_path: Path) -> None:
    """Row groups and batches of other sizes than ours; nested messages; ShareGPT's names."""
    chats = [None, [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes."}], None, None]
    table = pa.table({"id": ["k.1", "k.2", "k.3", "k.4"], "text": TEXTS, "talk": chats, "other": [1, 2, 3, 4]})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=3)
    run("parquet", tmp_path / "t.parquet", tmp_path / "out", "held_out=0", "messages=talk", "key=id")
    found = [each["json"] for each in webdataset_samples(tmp_path / "out" / "train").values()]
    rows = pq.read_table(tmp_path / "t.parquet").to_pylist()
    assert [found[n] for n in (0, 2, 3)] == [body(rows[n]["text"]) for n in (0, 2, 3)]
    assert found[1]["messages"] == [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes."}]


def test_bad_rows_are_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    lines = [json.dumps({"text": "good"}), "{nonsense", json.dumps([1]), json.dumps({"text": 3}), json.dumps({"x": 1}),
             '{"text": "half a pair \\ud800"}', json.dumps({"messages": [{"role": "robot", "content": "x"}]}),
             json.dumps({"messages": [{"role": "user", "content": "alone"}]}), "[" * 100_000,
             json.dumps({"text": "a" * 9_000_000}), json.dumps({"text": "tiny"})]  # fmt: skip
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    (summary,) = run("jsonl", tmp_path / "a.jsonl", tmp_path / "out", "held_out=0", "min_chars=4", "max_chars=20")
    assert list(webdataset_samples(tmp_path / "out" / "train")) == ["a_0000001", "a_0000011"]
    reasons = named(summary)
    expected = ["is not JSON", "not a JSON object", "holds no text", "is missing", "surrogate", "unknown role 'robot'",
                "no turn of the assistant", "is not JSON"]  # fmt: skip
    assert len(reasons) == len(expected) == summary.mark.left_out and summary.mark.unwanted == {"max_chars": 1}
    for (key, reason), words in zip(reasons.items(), expected, strict=True):
        assert words in reason and f"line {int(key[-7:])} of a.jsonl" in reason


def test_too_much_text_is_left_out_here_and_not_when_it_trains(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "a" * 9_000_000}) + "\n" + json.dumps({"text": "b"}))
    (summary,) = run("jsonl", tmp_path / "a.jsonl", tmp_path / "out", "held_out=0")
    assert "more than a sample may have" in named(summary)["a_0000001"] and summary.mark.samples == 1


def test_a_line_without_end_is_not_read_whole(tmp_path: Path) -> None:
    with open(tmp_path / "a.jsonl", "w") as file:
        file.write('{"text": "first"}\n{"text": "')
        for _ in range(140):
            file.write("a" * 2**20)
        file.write('"}\n{"text": "third"}\n')
    (summary,) = run("jsonl", tmp_path / "a.jsonl", tmp_path / "out", "held_out=0")
    assert list(webdataset_samples(tmp_path / "out" / "train")) == ["a_0000001", "a_0000003"]
    assert "line 2 of a.jsonl has more than" in named(summary)["a_0000002"]


@pytest.mark.parametrize(
    ("name", "content", "words", "said"),
    [
        ("a.jsonl", '{"body": "x"}', (), ["a.jsonl", "line 1", "field 'text'", "body"]),
        ("a.jsonl", '{"text": "x"}', ("key=id",), ["a.jsonl", "'id'"]),
        ("a.jsonl", "[\n1]", (), ["a.jsonl", "line 1", "not JSON"]),
        ("a.jsonl.gz", "not packed", (), ["a.jsonl.gz", "unpacked"]),
        ("a.jsonl.zip", "not packed", (), ["a.jsonl.zip", "unpacked"]),
    ],
)
def test_another_format_is_one_clear_error(
    tmp_path: Path, name: str, content: str, words: tuple[str, ...], said: list[str]
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError) as error:
        run("jsonl", tmp_path / name, tmp_path / "out", *words)
    assert len(error.value.problems) == 1 and all(each in error.value.problems[0] for each in said)


def test_parquet_without_the_field_and_what_is_no_parquet(tmp_path: Path) -> None:
    pq.write_table(pa.table({"content": ["x"]}), tmp_path / "t.parquet")
    with pytest.raises(UserError, match=r"t\.parquet has neither field 'text'.*its fields are content"):
        run("parquet", tmp_path / "t.parquet", tmp_path / "out")
    (tmp_path / "u.parquet").write_bytes(b"PAR1 but no more")
    with pytest.raises(UserError, match=r"u\.parquet is not readable Parquet"):
        run("parquet", tmp_path / "u.parquet", tmp_path / "out2")


def test_a_cut_off_packed_file_keeps_its_whole_shards(tmp_path: Path) -> None:
    lines = "".join(json.dumps({"text": f"number {n} {hash(n)}"}) + "\n" for n in range(2000))
    whole = gzip.compress(lines.encode())
    (tmp_path / "a.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"a\.jsonl\.gz cannot be unpacked"):
        run("jsonl", tmp_path / "a.jsonl.gz", tmp_path / "out", "held_out=0", "shard_samples=100")
    found = [each["json"]["content"][0]["text"] for each in webdataset_samples(tmp_path / "out" / "train").values()]
    assert len(found) % 100 == 0 and len(found) > 500
    assert found == [json.loads(line)["text"] for line in lines.splitlines()[: len(found)]]
