"""A sample's JSON -> pieces: text already tokenised, images and videos by name. The rules: docs/data_format.md.

Needs no media, and decides everything about text and loss; the index stores what it counted.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from megatron_qwen3vl.data.limits import IMAGE_EXTENSIONS, MAX_DOMAIN, MAX_MEDIA, VIDEO_EXTENSIONS, extension_of
from megatron_qwen3vl.data.timestamps import frame_times
from megatron_qwen3vl.data.tokenizer import Tokenizer
from megatron_qwen3vl.errors import BadSample

ROLES = ("system", "user", "assistant")
_FPS_RANGE = (1e-6, 1e6)
_LONGEST_S = 1e9


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
    """Frames to be shown, and the seconds of each. ``fps``: where it alone gave these times."""

    frames: tuple[str, ...]
    times: tuple[float, ...]
    fps: float | None


@dataclass(frozen=True)
class VideoFile:
    """Which of its frames are shown depends on the stage: ``Composition.with_times``."""

    member: str


Visual = Picture | Video | VideoFile
Piece = Text | Visual


@dataclass(frozen=True)
class Composition:
    """``domain`` is None where the sample names none (its source's name then stands for it). A document, other than a
    conversation, may be divided where it is too long."""

    pieces: tuple[Piece, ...]
    domain: str | None
    is_document: bool

    @property
    def num_text_tokens(self) -> int:
        """All tokens but the visual spans with their markers and timestamps."""
        return sum(len(piece.ids) for piece in self.pieces if isinstance(piece, Text))

    def text_marks(self) -> tuple[list[int], list[int]]:
        """Text tokens before each image and video; and before each place where a document's text part ends and
        another begins."""
        count, before, breaks = 0, [], []
        last = len(self.pieces) - 1  # of a document: what closes it, which is no part
        for number, piece in enumerate(self.pieces):
            if not isinstance(piece, Text):
                before.append(count)
                continue
            if self.is_document and 0 < number < last and isinstance(self.pieces[number - 1], Text):
                breaks.append(count)
            count += len(piece.ids)
        return before, breaks

    @property
    def visuals(self) -> list[Visual]:
        return [piece for piece in self.pieces if not isinstance(piece, Text)]

    def with_times(self, times: Sequence[Sequence[float]]) -> Composition:
        """Every video file becomes the video of its chosen frames, whose seconds ``times`` has for each file."""
        chosen = iter(times)
        return replace(
            self,
            pieces=tuple(
                Video((piece.member,), tuple(next(chosen)), None) if isinstance(piece, VideoFile) else piece
                for piece in self.pieces
            ),
        )


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
    if domain is not None and (len(domain) > MAX_DOMAIN or not domain.isprintable()):
        raise BadSample(f"member 'domain' is longer than {MAX_DOMAIN} characters, or no plain text")
    names = frozenset(record.names)
    if "content" in tree and "messages" in tree:
        raise BadSample("has both 'content' and 'messages'")
    if "content" in tree:
        pieces = _parts(tree["content"], "content", True, names, tokenizer)
        pieces.append(Text([tokenizer.endoftext], True))
    elif "messages" in tree:
        pieces = _conversation(tree["messages"], names, tokenizer)
    else:
        raise BadSample("missing member 'content' or 'messages'")
    num_media = sum(len(piece.frames) if isinstance(piece, Video) else not isinstance(piece, Text) for piece in pieces)
    if num_media > MAX_MEDIA:
        raise BadSample(f"has {num_media} images and frames, more than {MAX_MEDIA}")
    return Composition(tuple(pieces), domain, "content" in tree)


def _compose_caption(record: Record, pictures: list[str], tokenizer: Tokenizer) -> Composition:
    if "txt" not in record.texts:
        raise BadSample("has neither a .json nor a .txt")
    if len(pictures) > 1:
        raise BadSample(f"caption with more than one image: {', '.join(pictures)}")
    text = _decode(record.texts["txt"], ".txt")
    if not text and not pictures:
        raise BadSample("no content: .txt is empty")
    pieces: list[Piece] = [Picture(name) for name in pictures]
    pieces += [Text(tokenizer.encode(text), True), Text([tokenizer.endoftext], True)]
    return Composition(tuple(pieces), None, True)


def _parse_json(data: bytes) -> dict[str, Any]:
    text = _decode(data, ".json")
    try:
        tree = json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise BadSample(f".json is not JSON: {error}") from None
    if not isinstance(tree, dict):
        raise BadSample(f".json holds {_kind(tree)}, not an object")
    return tree


def _object(members: list[tuple[str, Any]]) -> dict[str, Any]:
    """Programs differ on which of two members of one name they take."""
    found = dict(members)
    if len(found) < len(members):
        raise BadSample("a member stands twice in an object of its .json")
    return found


def _decode(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadSample(f"{name} is not UTF-8 (byte {error.start})") from None


def _conversation(messages: Any, names: Collection[str], tokenizer: Tokenizer) -> list[Piece]:
    """The Qwen chat template: each turn is <|im_start|>role, newline, content, <|im_end|>, newline."""
    if not isinstance(messages, list):
        raise BadSample(f"'messages' is {_kind(messages)}, not a list")
    if not messages:
        raise BadSample("'messages' is empty")
    pieces: list[Piece] = []
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


def _parts(content: Any, where: str, loss: bool, names: Collection[str], tokenizer: Tokenizer) -> list[Piece]:
    """A text, or a list of text, image and video parts."""
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise BadSample(f"{where} is {_kind(content)}, not a list of parts")
    if not content:
        raise BadSample(f"no content: {where} is empty")
    pieces: list[Piece] = []
    for number, part in enumerate(content):
        here = f"{where}[{number}]"
        if not isinstance(part, dict):
            raise BadSample(f"{here} is {_kind(part)}, not an object")
        kind = part.get("type")
        if kind == "text":
            pieces.append(Text(tokenizer.encode(_string(part, "text", here)), loss))
        elif kind == "image":
            pieces.append(Picture(_media(_string(part, "image", here), here, names, IMAGE_EXTENSIONS)))
        elif kind == "video":
            pieces.append(_video(part, here, names))
        elif "type" not in part:
            raise BadSample(f"{here}: missing member 'type'")
        else:
            raise BadSample(f"{here}: bad part type {kind!r:.40} (known: text, image, video)")
    if all(isinstance(piece, Text) and not piece.ids for piece in pieces) and where == "content":
        raise BadSample("no content: every part is empty")
    return pieces


def _video(part: dict[str, Any], here: str, names: Collection[str]) -> Video | VideoFile:
    if "frames" not in part:
        if "video" not in part:
            raise BadSample(f"{here}: missing member 'frames' or 'video'")
        return VideoFile(_media(_string(part, "video", here), here, names, VIDEO_EXTENSIONS))
    frames, fps, times = part["frames"], part.get("fps"), part.get("times")
    if not isinstance(frames, list) or not frames or not all(isinstance(frame, str) for frame in frames):
        raise BadSample(f"{here}: 'frames' is not a list of names")
    members = tuple(_media(frame, here, names, IMAGE_EXTENSIONS) for frame in frames)
    if times is not None:
        return Video(members, _times(times, len(frames), here), None)
    if fps is None:
        raise BadSample(f"{here}: missing member 'fps'")
    if not _is_number(fps):
        raise BadSample(f"{here}: 'fps' is {_kind(fps)}, not a number")
    if not _FPS_RANGE[0] <= fps <= _FPS_RANGE[1]:  # NaN and infinity too
        raise BadSample(f"{here}: 'fps' is out of range")
    return Video(members, tuple(frame_times(len(frames), float(fps))), float(fps))


def _times(times: Any, count: int, here: str) -> tuple[float, ...]:
    if not isinstance(times, list) or len(times) != count or not all(_is_number(time) for time in times):
        raise BadSample(f"{here}: 'times' is not a list of seconds, one for each frame")
    if not all(0 <= time < _LONGEST_S for time in times):  # NaN and infinity too
        raise BadSample(f"{here}: 'times' is out of range")
    seconds = tuple(float(time) for time in times)
    if any(after <= before for before, after in pairwise(seconds)):
        raise BadSample(f"{here}: 'times' does not ascend")
    return seconds


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _media(name: str, here: str, names: Collection[str], extensions: Sequence[str]) -> str:
    """Only what is named as a picture or a video is ever given to a decoder."""
    if name not in names:
        raise BadSample(f"{here}: missing media {name!r:.80}")
    if extension_of(name) not in extensions:
        raise BadSample(f"{here}: {name!r:.80} is not named .{', .'.join(extensions)}")
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
