"""Qwen's tokenizer from a tiktoken vocabulary, against the tokenizers library, render.py and the published hashes."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import os
import zipfile
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from megatron_qwen3vl.cli import main
from megatron_qwen3vl.data import qwen_tokenizer
from megatron_qwen3vl.data.compose import Record, compose
from megatron_qwen3vl.data.qwen_tokenizer import MEMBER, SPLIT, parse_ranks, rebuild, replay_merges, tokenizer_files
from megatron_qwen3vl.data.render import render
from megatron_qwen3vl.data.tokenizer import Tokenizer as OurTokenizer
from megatron_qwen3vl.errors import UserError
from tests.unit.data.shard_helpers import VISION

TEXTS = ["The digits are 347.", "naïve 漢字 🙂\n\n  x\t'll", "banana bandana", "<|im_end|>"]

@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    """A byte pair encoding that the library trained: its merges are known, its vocabulary alone is given away."""
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(SPLIT), "isolated"), byte_level])
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([Path(__file__).read_text(), *TEXTS * 5], trainer)
    return tokenizer


@pytest.fixture(scope="module")
def vocabulary(trained: Tokenizer) -> bytes:
    """Its tokens and ranks as a tiktoken file; the lines in no order."""
    characters = dict(zip(qwen_tokenizer._alphabet(), range(256), strict=True))
    lines = []
    for token, rank in trained.get_vocab().items():
        content = bytes(characters[character] for character in token)
        lines.append(base64.b64encode(content) + b" %d" % rank)
    return b"\n".join(lines) + b"\n"


def test_replay_gives_the_merges_that_made_the_vocabulary(trained: Tokenizer, vocabulary: bytes) -> None:
    model = json.loads(trained.to_str())["model"]
    merges = [merge if isinstance(merge, list) else merge.split(" ") for merge in model["merges"]]
    alphabet = qwen_tokenizer._alphabet()
    replayed = replay_merges(parse_ranks(vocabulary))
    assert [["".join(alphabet[b] for b in part) for part in merge] for merge in replayed] == merges
    assert len(merges) > 400


def test_files_encode_alike(trained: Tokenizer, vocabulary: bytes, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    files = tokenizer_files(parse_ranks(vocabulary))
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    ours, theirs = OurTokenizer(files["tokenizer.json"].decode()), AutoTokenizer.from_pretrained(tmp_path)
    assert ours.missing == [] and ours.endoftext == trained.get_vocab_size()
    for text in TEXTS:
        assert ours.encode(text) == trained.encode(text).ids
        assert ours.decode(ours.encode(text)) == text
    # control tokens are looked for by transformers only
    assert theirs("<|im_end|>")["input_ids"] == [ours.im_end]
    assert all(theirs(text)["input_ids"] == ours.encode(text) for text in TEXTS[:3])
    assert (theirs.eos_token, theirs.pad_token) == ("<|im_end|>", "<|endoftext|>")


def test_chat_template_renders_what_the_data_path_renders(vocabulary: bytes, tmp_path: Path) -> None:
    """One visual token a picture, as the template writes; the processor then repeats it."""
    from transformers import AutoTokenizer

    files = tokenizer_files(parse_ranks(vocabulary))
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    tokenizer = OurTokenizer(files["tokenizer.json"].decode())
    messages = [
        {"role": "system", "content": "Short answers."},
        {"role": "user", "content": [{"type": "image", "image": "0.jpg"}, {"type": "text", "text": "Read. "}]},
        {"role": "assistant", "content": "347\n"},
        {"role": "user", "content": [{"type": "text", "text": "And"}, {"type": "image", "image": "1.jpg"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "nothing"}]},
    ]
    record = Record(("json", "0.jpg", "1.jpg"), {"json": json.dumps({"messages": messages}).encode()})
    ours = render(compose(record, tokenizer), [(1, 2, 2)] * 2, "seconds", tokenizer, VISION).input_ids.tolist()
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    text = theirs.apply_chat_template(messages, tokenize=False)
    assert tokenizer.decode(ours) == text
    # Each piece is tokenised on its own by us, the whole by transformers: the same where no merge crosses a border.
    assert theirs(text)["input_ids"] == ours
    prompt = theirs.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
    assert text.startswith(prompt) and prompt.endswith("<|im_start|>assistant\n")


BROKEN = {
    "no ranks": b"YQ==\n",
    "not base64": b"!!! 0\n",
    "a rank twice": b"YQ== 0\nYg== 0\n",
    "a token twice": b"YQ== 0\nYQ== 1\n",
    "a hole": b"YQ== 0\nYg== 2\n",
    "no single bytes": b"YQ== 0\nYg== 1\n",
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN.keys())
def test_what_is_no_vocabulary_is_refused(content: bytes) -> None:
    with pytest.raises(UserError, match="not a "):
        parse_ranks(content)


def test_a_token_that_nothing_makes_is_refused() -> None:
    ranks = {bytes([value]): value for value in range(256)} | {b"abc": 256}
    with pytest.raises(UserError, match="b'abc'"):
        replay_merges(ranks)


def test_another_vocabulary_is_refused(vocabulary: bytes, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The hash is checked before anything is written, from a file and from a wheel."""
    (tmp_path / "qwen.tiktoken").write_bytes(vocabulary)
    with zipfile.ZipFile(tmp_path / "some.whl", "w") as wheel:
        wheel.writestr(MEMBER, vocabulary)
    with zipfile.ZipFile(tmp_path / "other.whl", "w") as wheel:
        wheel.writestr("other", b"")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    cases = {
        ("qwen.tiktoken", "out"): "its sha256 is " + hashlib.sha256(vocabulary).hexdigest(),
        ("some.whl", "out"): "its sha256 is " + hashlib.sha256(vocabulary).hexdigest(),
        ("other.whl", "out"): "not a wheel that holds",
        ("absent", "out"): "no such file",
        ("qwen.tiktoken", "used"): "already there",
    }
    for (source, out), message in cases.items():
        assert main(["data", "tokenizer", str(tmp_path / source), str(tmp_path / out)]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def _published_vocabulary() -> Path | None:
    """A file named by QWEN_TIKTOKEN, or the one of an installed dashscope. Nothing is downloaded here."""
    if "QWEN_TIKTOKEN" in os.environ:
        return Path(os.environ["QWEN_TIKTOKEN"])
    found = importlib.util.find_spec("dashscope")
    return None if found is None or found.origin is None else Path(found.origin).parent / "resources" / "qwen.tiktoken"


@pytest.mark.skipif(_published_vocabulary() is None, reason="no qwen.tiktoken: set QWEN_TIKTOKEN or install dashscope")
def test_the_published_files(tmp_path: Path) -> None:
    rebuild(str(_published_vocabulary()), tmp_path / "out")
    digest = hashlib.sha256((tmp_path / "out" / "tokenizer.json").read_bytes()).hexdigest()
    assert digest == "aeb13307a71acd8fe81861d94ad54ab689df773318809eed3cbe794b4492dae4"
    ours = OurTokenizer((tmp_path / "out" / "tokenizer.json").read_text("utf-8"))
    assert (ours.endoftext, ours.im_end, ours.vision_start, ours.image_pad) == (151643, 151645, 151652, 151655)
