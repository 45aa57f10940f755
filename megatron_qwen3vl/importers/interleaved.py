"""Documents of texts and images in the order of reading: what OBELICS and MMC4 become."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from megatron_qwen3vl.errors import BadSample
from megatron_qwen3vl.importers.files import picture, sample
from megatron_qwen3vl.importers.frame import Made, Unwanted
from megatron_qwen3vl.recipes.record import Part, document, image, text


@dataclass(frozen=True)
class Shown:
    """An image of a document, by the name that its source gives it."""

    name: str


@dataclass(frozen=True)
class Wanted:
    """``min_side``: pixels. Images that are too small go, documents with too few or too many images go."""

    min_images: int
    max_images: int | None
    min_side: int


def interleave(
    pieces: Sequence[str | Shown], find: Callable[[str], bytes], wanted: Wanted, domain: str, where: str
) -> Made:
    """One sample. An image that cannot be used is left out, with a note, and the document stays.

    Args:
        find: the file of an image's name; raises BadSample where there is none.

    Raises:
        BadSample: nothing is left.
        Unwanted: ``min_images`` or ``max_images``, counted over the images that are left.
    """
    parts: list[Part] = []
    notes: list[str] = []
    members: dict[str, str | None] = {}  # an image twice in a document is one file
    media: dict[str, bytes] = {}
    for piece in pieces:
        if isinstance(piece, str):
            if piece:
                parts.append(text(piece))
            continue
        if piece.name not in members:
            members[piece.name] = _take(piece.name, find, wanted, media, notes)
        member = members[piece.name]
        if member is not None:
            parts.append(image(member))
    shown = sum(part["type"] == "image" for part in parts)
    if shown < wanted.min_images:
        raise Unwanted("min_images")
    if wanted.max_images is not None and shown > wanted.max_images:
        raise Unwanted("max_images")
    if not parts:
        raise BadSample(f"{where} holds neither text nor an image")
    return sample(document(parts, domain), media, [f"{where}: {note}" for note in notes])


def _take(
    name: str, find: Callable[[str], bytes], wanted: Wanted, media: dict[str, bytes], notes: list[str]
) -> str | None:
    try:
        found = picture(find(name))
    except BadSample as bad:
        notes.append(f"image {name:.200}: {bad}")
        return None
    if min(found.height, found.width) < wanted.min_side:
        notes.append(f"image {name:.200}: {found.width} x {found.height} pixels are fewer than min_side")
        return None
    member = f"{len(media)}.{found.ending}"
    media[member] = found.data
    return member
