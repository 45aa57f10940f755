"""Text -> token ids, over a Hugging Face ``tokenizer.json``.

Text of the data is text: ``<|im_end|>`` written in a document becomes the tokens of those ten characters, never the
control token. Control tokens come only from ``render.py``, by name.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import tokenizers

from megatron_qwen3vl.config.schema import ModelConfig
from megatron_qwen3vl.errors import BadSample, UserError

BUILT_IN = Path(__file__).parent.parent / "assets" / "tokenizer"

# Name in the tokenizer, attribute of Tokenizer, key of config.json that must agree (None: config.json has no such key).
_SPECIAL = (
    ("<|endoftext|>", "endoftext", None),
    ("<|im_start|>", "im_start", None),
    ("<|im_end|>", "im_end", None),
    ("<|vision_start|>", "vision_start", "vision_start_token_id"),
    ("<|vision_end|>", "vision_end", "vision_end_token_id"),
    ("<|image_pad|>", "image_pad", "image_token_id"),
    ("<|video_pad|>", "video_pad", "video_token_id"),
)


class Tokenizer:
    """A tokenizer and the ids of its control tokens. Pickles as its JSON text.

    ``fingerprint`` is the sha256 of tokenizer.json: two tokenizers that count alike have the same one.
    """

    endoftext: int
    im_start: int
    im_end: int
    vision_start: int
    vision_end: int
    image_pad: int
    video_pad: int

    def __init__(self, definition: str) -> None:
        """``definition`` is the text of a tokenizer.json that holds all control tokens (``load_tokenizer`` checks)."""
        self._definition = definition
        self.fingerprint = hashlib.sha256(definition.encode()).hexdigest()
        self._library = tokenizers.Tokenizer.from_str(definition)
        self._library.no_truncation()
        self._library.no_padding()
        self._library.encode_special_tokens = True  # the library's name for "do not look for control tokens in text"
        vocabulary = self._library.get_vocab(with_added_tokens=True)
        self.largest_id = max(vocabulary.values())
        self.missing = [name for name, _, _ in _SPECIAL if name not in vocabulary]
        for name, attribute, _ in _SPECIAL:
            setattr(self, attribute, vocabulary.get(name, -1))

    @property
    def pad_id(self) -> int:
        """What fills a pack behind its last sample; never predicted, never attended to."""
        return self.endoftext

    def encode(self, text: str) -> list[int]:
        """Ids of ``text`` on its own: no BOS, no control tokens.

        Raises:
            BadSample: the text holds lone surrogates (a JSON ``\\ud800`` escape), which no encoding can write.
        """
        try:
            return self._library.encode(text, add_special_tokens=False).ids
        except (UnicodeEncodeError, TypeError) as error:
            raise BadSample("text is not valid Unicode (lone surrogate)") from error

    def decode(self, ids: list[int]) -> str:
        """Text of ``ids``, control tokens written by name."""
        return self._library.decode(ids, skip_special_tokens=False)

    def __reduce__(self) -> tuple[type[Tokenizer], tuple[str]]:
        return Tokenizer, (self._definition,)


def load_tokenizer(folder: str | None, model: ModelConfig) -> Tokenizer:
    """The tokenizer in ``folder`` (a Hugging Face folder with tokenizer.json; None: the built-in one).

    Raises:
        UserError: no readable tokenizer.json, a control token missing or with another id than config.json says,
            or ids that do not fit ``vocab_size``.
    """
    path = (BUILT_IN if folder is None else Path(folder)) / "tokenizer.json"
    try:
        tokenizer = Tokenizer(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise UserError(
            f"tokenizer: cannot read {path}: {error.strerror}; name a folder with a tokenizer.json"
        ) from None
    except Exception as error:  # the library raises bare Exception on a malformed file
        raise UserError(f"tokenizer: {path} is not a tokenizer.json: {error}") from None
    if tokenizer.missing:
        raise UserError(f"tokenizer: {path} lacks {', '.join(tokenizer.missing)}; use a Qwen-VL tokenizer")
    problems = _disagreements(tokenizer, model, path) + [
        f"tokenizer: {name} is not marked special in {path}, so that text could write it; mark it special"
        for name, attribute, _ in _SPECIAL
        if vars(tokenizer)[attribute] in tokenizer.encode(name)
    ]
    if problems:
        raise UserError(problems)
    return tokenizer


def _disagreements(tokenizer: Tokenizer, model: ModelConfig, path: Path) -> list[str]:
    expected = {
        "image_token_id": (tokenizer.image_pad, model.image_token_id),
        "video_token_id": (tokenizer.video_pad, model.video_token_id),
        "vision_start_token_id": (tokenizer.vision_start, model.vision_start_token_id),
        "vision_end_token_id": (tokenizer.vision_end, model.vision_end_token_id),
    }
    names = {key: name for name, _, key in _SPECIAL if key is not None}
    problems = [
        f"tokenizer: {names[key]} is {has} in {path}, but model.{key} is {wants}; use the tokenizer made for this model"
        for key, (has, wants) in expected.items()
        if has != wants
    ]
    size = model.text_config.vocab_size
    if tokenizer.largest_id >= size:
        problems.append(
            f"tokenizer: largest id {tokenizer.largest_id} in {path} does not fit model.text_config.vocab_size={size}; "
            "use a smaller tokenizer or a larger vocabulary"
        )
    return problems
