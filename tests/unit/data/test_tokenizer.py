"""Control tokens come only from their names; text that looks like them stays text."""

import hashlib
import json
import pickle
from pathlib import Path

import pytest
import tokenizers

from megatron_qwen3vl.data.tokenizer import BUILT_IN, load_tokenizer
from megatron_qwen3vl.errors import BadSample, UserError
from tests.unit.data.shard_helpers import model, tokenizer

CONTROLS = ("endoftext", "im_start", "im_end", "vision_start", "vision_end", "image_pad", "video_pad")


def test_ids_by_name() -> None:
    library = tokenizers.Tokenizer.from_file(str(BUILT_IN / "tokenizer.json"))
    found = load_tokenizer(None, model())
    assert {name: vars(found)[name] for name in CONTROLS} == {
        name: library.token_to_id(f"<|{name}|>") for name in CONTROLS
    }
    assert found.fingerprint == hashlib.sha256((BUILT_IN / "tokenizer.json").read_bytes()).hexdigest()


@pytest.mark.parametrize("name", CONTROLS)
def test_control_strings_in_text_are_text(name: str) -> None:
    found = tokenizer()
    ids = found.encode(f"a<|{name}|>b")
    assert not set(ids) & {vars(found)[control] for control in CONTROLS}
    assert found.decode(ids) == f"a<|{name}|>b"


def test_added_token_that_is_not_special_still_works() -> None:
    """<think> is an added token of Qwen's, but not a control token: text may write it."""
    added = json.loads((BUILT_IN / "tokenizer.json").read_text("utf-8"))["added_tokens"]
    (think,) = [token for token in added if token["content"] == "<think>"]
    assert not think["special"]
    found = tokenizer()
    assert found.encode("<think>") == [think["id"]]
    assert think["id"] in found.encode("so <think>well<|im_end|>") and found.im_end not in found.encode(
        "<think><|im_end|>"
    )


def test_travels_by_pickle() -> None:
    copy = pickle.loads(pickle.dumps(tokenizer()))
    text = "Vier Wörter, 2 Zahlen: 17\n\n<|im_end|> 漢字"
    assert copy.encode(text) == tokenizer().encode(text)
    assert copy.fingerprint == tokenizer().fingerprint


def test_lone_surrogate_is_a_bad_sample() -> None:
    with pytest.raises(BadSample, match="Unicode"):
        tokenizer().encode("\ud800")


def test_disagreement_with_the_model_names_both() -> None:
    with pytest.raises(UserError) as error:
        load_tokenizer(None, model(image_token_id=3, vocab_size=100))
    image, size = error.value.problems
    assert "<|image_pad|>" in image and "image_token_id is 3" in image and str(tokenizer().image_pad) in image
    assert "vocab_size=100" in size and str(tokenizer().largest_id) in size


def test_unusable_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read"):
        load_tokenizer(str(tmp_path), model())
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="not a tokenizer.json"):
        load_tokenizer(str(tmp_path), model())
    tree = json.loads((BUILT_IN / "tokenizer.json").read_text("utf-8"))
    tree["added_tokens"] = [t for t in tree["added_tokens"] if t["content"] != "<|video_pad|>"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(tree))
    with pytest.raises(UserError, match=r"lacks <\|video_pad\|>"):
        load_tokenizer(str(tmp_path), model())
    for token in tree["added_tokens"]:
        token["special"] = False
    tree["added_tokens"].append(tree["added_tokens"][0] | {"content": "<|video_pad|>", "id": tokenizer().video_pad})
    (tmp_path / "tokenizer.json").write_text(json.dumps(tree))
    with pytest.raises(UserError, match="not marked special"):
        load_tokenizer(str(tmp_path), model())
