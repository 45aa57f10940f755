"""A sample's JSON -> token ids, labels, positions.

    Record --compose--> pieces (text already tokenised, images and videos by name) --render--> Tokens

``compose`` needs no media and decides everything about text and loss; the index stores what it counted; ``render``
fills in the visual spans. So planned and rendered lengths come from the same pieces. The rules: docs/data_format.md.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from megatron_qwen3vl.batch import IGNORE
from megatron_qwen3vl.config.schema import VisionConfig
from megatron_qwen3vl.data.positions import mrope_positions
from megatron_qwen3vl.data.timestamps import frame_times, group_times, stamp
from megatron_qwen3vl.data.tokenizer import Tokenizer
from megatron_qwen3vl.errors import BadSample

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
ROLES = ("system", "user", "assistant")
_FPS_RANGE = (1e-6, 1e6)


@dataclass(frozen=True)
class Record:
    """A sample as stored: the names of its files and the bytes of its ``json`` and ``txt``."""

    names: tuple[str, ...]
    texts: Mapping[str, bytes]


@dataclass(frozen=True)
class Text:
    ids: list[int]
    loss: bool


@dataclass(frozen=True)
class Picture:
    member: str


@dataclass(frozen=True)
class Video:
    frames: tuple[str, ...]
    fps: float


@dataclass(frozen=True)
class Composition:
    """``domain`` is None where the sample names none (its source's name then stands for it)."""

    pieces: tuple[Text | Picture | Video, ...]
    domain: str | None

    @property
    def num_text_tokens(self) -> int:
        """All tokens but the visual spans with their markers and timestamps."""
        return sum(len(piece.ids) for piece in self.pieces if isinstance(piece, Text))

    @property
    def visuals(self) -> list[Picture | Video]:
        return [piece for piece in self.pieces if not isinstance(piece, Text)]


@dataclass(frozen=True)
class Tokens:
    """The fields of ``batch.Sample`` that need no pixels."""

    input_ids: np.ndarray
    labels: np.ndarray
    positions: np.ndarray
    visual_index: np.ndarray
    grids: np.ndarray


def compose(record: Record, tokenizer: Tokenizer) -> Composition:
    """Check a record and tokenise its text.

    Raises:
        BadSample: anything that the format does not allow, by name.
    """
    pictures = [name for name in record.names if name.lower() in IMAGE_EXTENSIONS]
    tree = _parse_json(record.texts["json"]) if "json" in record.texts else None
    # img2dataset writes its own facts beside a caption pair as KEY.json: such a pair is still a caption pair.
    if tree is None or ("txt" in record.texts and pictures and not {"content", "messages"} & tree.keys()):
        return _compose_caption(record, pictures, tokenizer)
    domain = tree.get("domain")
    if domain is not None and (not isinstance(domain, str) or not domain or not _is_unicode(domain)):
        raise BadSample("member 'domain' is not a text")
    if "content" in tree and "messages" in tree:
        raise BadSample("has both 'content' and 'messages'")
    if "content" in tree:
        pieces = _parts(tree["content"], "content", True, record.names, tokenizer)
        pieces.append(Text([tokenizer.endoftext], True))
    elif "messages" in tree:
        pieces = _conversation(tree["messages"], record.names, tokenizer)
    else:
        raise BadSample("missing member 'content' or 'messages'")
    return Composition(tuple(pieces), domain)


def _compose_caption(record: Record, pictures: list[str], tokenizer: Tokenizer) -> Composition:
    if "txt" not in record.texts:
        raise BadSample("has neither a .json nor a .txt")
    if len(pictures) > 1:
        raise BadSample(f"caption with more than one image: {', '.join(pictures)}")
    text = _decode(record.texts["txt"], ".txt")
    if not text and not pictures:
        raise BadSample("no content: .txt is empty")
    pieces: list[Text | Picture | Video] = [Picture(name) for name in pictures]
    pieces += [Text(tokenizer.encode(text), True), Text([tokenizer.endoftext], True)]
    return Composition(tuple(pieces), None)


def _parse_json(data: bytes) -> dict[str, Any]:
    text = _decode(data, ".json")
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadSample(f".json is not JSON: {error}") from None
    if not isinstance(tree, dict):
        raise BadSample(f".json holds {_kind(tree)}, not an object")
    return tree


def _decode(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadSample(f"{name} is not UTF-8 (byte {error.start})") from None


def _conversation(messages: Any, names: Sequence[str], tokenizer: Tokenizer) -> list[Text | Picture | Video]:
    """The Qwen chat template: each turn is <|im_start|>role, newline, content, <|im_end|>, newline."""
    if not isinstance(messages, list):
        raise BadSample(f"'messages' is {_kind(messages)}, not a list")
    if not messages:
        raise BadSample("'messages' is empty")
    pieces: list[Text | Picture | Video] = []
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        if not isinstance(message, dict):
            raise BadSample(f"{where} is {_kind(message)}, not an object")
        for member in ("role", "content"):
            if member not in message:
                raise BadSample(f"{where}: missing member '{member}'")
        role = message["role"]
        if role not in ROLES:
            raise BadSample(f"{where}: unknown role {role!r:.40} (known: {', '.join(ROLES)})")
        loss = role == "assistant"
        pieces.append(Text([tokenizer.im_start, *tokenizer.encode(f"{role}\n")], False))
        pieces += _parts(message["content"], f"{where}.content", loss, names, tokenizer)
        pieces.append(Text([tokenizer.im_end, *tokenizer.encode("\n")], loss))
    return pieces


def _parts(
    content: Any, where: str, loss: bool, names: Sequence[str], tokenizer: Tokenizer
) -> list[Text | Picture | Video]:
    """A text, or a list of text, image and video parts."""
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise BadSample(f"{where} is {_kind(content)}, not a list of parts")
    if not content:
        raise BadSample(f"no content: {where} is empty")
    pieces: list[Text | Picture | Video] = []
    for number, part in enumerate(content):
        here = f"{where}[{number}]"
        if not isinstance(part, dict):
            raise BadSample(f"{here} is {_kind(part)}, not an object")
        kind = part.get("type")
        if kind == "text":
            pieces.append(Text(tokenizer.encode(_string(part, "text", here)), loss))
        elif kind == "image":
            pieces.append(Picture(_media(_string(part, "image", here), here, names)))
        elif kind == "video":
            pieces.append(_video(part, here, names))
        elif "type" not in part:
            raise BadSample(f"{here}: missing member 'type'")
        else:
            raise BadSample(f"{here}: bad part type {kind!r:.40} (known: text, image, video)")
    if all(isinstance(piece, Text) and not piece.ids for piece in pieces) and where == "content":
        raise BadSample("no content: every part is empty")
    return pieces


def _video(part: dict[str, Any], here: str, names: Sequence[str]) -> Video:
    if "frames" not in part:
        if "video" in part:
            raise BadSample(f"{here}: video files are not supported yet; make frame lists")
        raise BadSample(f"{here}: missing member 'frames'")
    frames, fps = part["frames"], part.get("fps")
    if not isinstance(frames, list) or not frames or not all(isinstance(frame, str) for frame in frames):
        raise BadSample(f"{here}: 'frames' is not a list of names")
    if fps is None:
        raise BadSample(f"{here}: missing member 'fps'")
    if isinstance(fps, bool) or not isinstance(fps, int | float):
        raise BadSample(f"{here}: 'fps' is {_kind(fps)}, not a number")
    if not _FPS_RANGE[0] <= fps <= _FPS_RANGE[1]:  # NaN and infinity too
        raise BadSample(f"{here}: 'fps' is out of range")
    return Video(tuple(_media(frame, here, names) for frame in frames), float(fps))


def _media(name: str, here: str, names: Sequence[str]) -> str:
    if name not in names:
        raise BadSample(f"{here}: missing media {name!r:.80}")
    return name


def _string(part: dict[str, Any], member: str, here: str) -> str:
    if member not in part:
        raise BadSample(f"{here}: missing member '{member}'")
    if not isinstance(part[member], str):
        raise BadSample(f"{here}: '{member}' is {_kind(part[member])}, not a text")
    return part[member]


def _is_unicode(text: str) -> bool:
    return not any(0xD800 <= ord(character) <= 0xDFFF for character in text)


def _kind(value: Any) -> str:
    names = {
        dict: "an object",
        list: "a list",
        str: "a text",
        bool: "a boolean",
        int: "a number",
        float: "a number",
    }
    return names.get(type(value), "null")


def video_stamps(num_frames: int, fps: float, style: str, vision: VisionConfig) -> list[str]:
    """The timestamp before each temporal group of a frame list."""
    return [stamp(seconds, style) for seconds in group_times(frame_times(num_frames, fps), vision.temporal_patch_size)]


def render(
    composition: Composition,
    grids: Sequence[tuple[int, int, int]],
    style: str,
    tokenizer: Tokenizer,
    vision: VisionConfig,
) -> Tokens:
    """Token ids, shifted labels, positions.

    Args:
        composition: from ``compose``.
        grids: (t, h, w) in patches of each image and each whole video, in reading order.
        style: ``seconds`` or ``clock``.

    Raises:
        BadSample: the text holds placeholder tokens, or a grid is missing.
    """
    ids: list[int] = []
    loss: list[bool] = []
    starts: list[int] = []
    rows: list[tuple[int, int, int]] = []
    if len(composition.visuals) != len(grids):
        raise BadSample(f"{len(composition.visuals)} images and videos, but {len(grids)} are indexed")

    def put(tokens: list[int], bears_loss: bool) -> None:
        ids.extend(tokens)
        loss.extend([bears_loss] * len(tokens))

    def put_visual(placeholder: int, height: int, width: int) -> None:
        starts.append(len(ids) + 1)
        rows.append((1, height, width))
        count = height * width // vision.spatial_merge_size**2
        put([tokenizer.vision_start, *[placeholder] * count, tokenizer.vision_end], False)

    remaining = iter(grids)
    for piece in composition.pieces:
        if isinstance(piece, Text):
            put(piece.ids, piece.loss)
            continue
        groups, height, width = next(remaining)
        if isinstance(piece, Picture):
            put_visual(tokenizer.image_pad, height, width)
            continue
        stamps = video_stamps(len(piece.frames), piece.fps, style, vision)
        if len(stamps) != groups:
            raise BadSample(f"{len(piece.frames)} frames, but {groups} groups are indexed")
        for text in stamps:
            put(tokenizer.encode(text), False)
            put_visual(tokenizer.video_pad, height, width)
    return _finish(np.array(ids, np.int32), np.array(loss, bool), starts, rows, tokenizer, vision)


def _finish(
    ids: np.ndarray,
    loss: np.ndarray,
    starts: list[int],
    rows: list[tuple[int, int, int]],
    tokenizer: Tokenizer,
    vision: VisionConfig,
) -> Tokens:
    grids = np.array(rows, np.int32).reshape(-1, 3)
    first = np.array(starts, np.int64)
    counts = grids[:, 1] * grids[:, 2] // vision.spatial_merge_size**2
    spans = [np.arange(start, start + count) for start, count in zip(first, counts, strict=True)]
    visual_index = np.concatenate([*spans, np.zeros(0, np.int64)]).astype(np.int32)
    # Invariant 13: a text that smuggles in a placeholder would shift every feature behind it.
    if int(np.isin(ids, (tokenizer.image_pad, tokenizer.video_pad)).sum()) != len(visual_index):
        raise BadSample("text holds placeholder tokens")
    labels = np.full(len(ids), IGNORE, np.int32)
    labels[:-1] = np.where(loss[1:], ids[1:], IGNORE)
    positions = mrope_positions(len(ids), first, grids, vision.spatial_merge_size)
    return Tokens(ids, labels, positions, visual_index, grids)
