"""Texts and pictures in reading order, out of real manuals in HTML; short pages are joined, by their names.

By default the manual of pygame-ce (LGPL 2.1), which its wheel carries; any other folder, Python or Debian package can
be named. Nothing of a manual is part of this repository, and what a user builds keeps the manual's licence.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from megatron_qwen3vl.errors import UserError
from megatron_qwen3vl.recipes.html_blocks import Block, Shown, Words, read_page
from megatron_qwen3vl.recipes.materials import debian_folder, package_folder
from megatron_qwen3vl.recipes.record import Part, Record, document, image, text
from megatron_qwen3vl.recipes.splits import HELD_OUT_ONE_IN

DOMAIN = "interleaved"


@dataclass(frozen=True)
class Manual:
    """``kind``: python (an installed package), debian (a package that is fetched) or path. ``folder`` is inside it."""

    kind: str
    name: str
    folder: str


@dataclass(frozen=True)
class InterleavedSettings:
    manuals: tuple[Manual, ...]
    smallest_image: int  # pixels; an image with a shorter side is left out (icons, rules)
    characters: tuple[int, int]  # fewest and most of a sample; a block that would go beyond is left to others
    images: tuple[int, int]  # fewest and most of a sample
    characters_per_image: int  # at most: pages with too little to see are left out


@dataclass(frozen=True)
class Page:
    path: Path
    blocks: tuple[Block, ...]

    @property
    def images(self) -> tuple[Path, ...]:
        return tuple(block.file for block in self.blocks if isinstance(block, Shown))


def find_manual(manual: Manual) -> Path:
    """Raises UserError: it is not there."""
    if manual.kind not in ("python", "debian", "path"):
        raise UserError(f"settings.manuals: kind {manual.kind}: choose python, debian or path")
    if manual.kind == "python":
        root = package_folder(manual.name)
        if root is None:
            raise UserError(
                f"settings.manuals: no Python package {manual.name} here: pip install 'megatron-qwen3vl[data]'"
            )
    else:
        root = debian_folder(manual.name) if manual.kind == "debian" else Path(manual.name)
    folder = root / manual.folder
    if not folder.is_dir():
        raise UserError(f"settings.manuals: {manual.name} holds no folder {manual.folder}")
    return folder


@cache
def read_manual(folder: Path, smallest_image: int) -> tuple[Page, ...]:
    """Its pages in order of their names, without small images."""

    def kept(block: Block) -> bool:
        return isinstance(block, Words) or _short_side(block.file) >= smallest_image

    files = sorted([*folder.rglob("*.html"), *folder.rglob("*.htm"), *folder.rglob("*.xhtml")])
    return tuple(Page(file, tuple(filter(kept, read_page(file)))) for file in files)


@cache
def _short_side(file: Path) -> int:
    with Image.open(file) as picture:
        return min(picture.size)


def pages_of_split(pages: Sequence[Page], folder: Path, held_out: bool) -> list[Page]:
    """Of all pages that share an image, directly or through others, all or none."""
    groups: list[tuple[set[Path], list[Page]]] = []
    for page in pages:
        images, members = set(page.images), [page]
        for other in [group for group in groups if group[0] & images]:
            groups.remove(other)
            images, members = images | other[0], other[1] + members
        groups.append((images, members))

    def chosen(members: list[Page]) -> bool:
        name = min(page.path.relative_to(folder).as_posix() for page in members)
        return (zlib.crc32(name.encode()) % HELD_OUT_ONE_IN == 0) == held_out

    return sorted((page for _, members in groups if chosen(members) for page in members), key=lambda page: page.path)


def starts(pages: Sequence[Page], settings: InterleavedSettings) -> list[tuple[int, int]]:
    """(page, block) where a sample can begin: pages, sections, and a text right before an image; with what ``fits``."""
    found = []
    for number, page in enumerate(pages):
        headings = {0, *(i for i, b in enumerate(page.blocks) if isinstance(b, Words) and b.heading)}
        before = {i for i, (b, c) in enumerate(pairwise(page.blocks)) if isinstance(b, Words) and isinstance(c, Shown)}
        found += [(number, i) for i in sorted(headings | before) if fits(cut(pages, number, i, settings), settings)]
    return found


def cut(pages: Sequence[Page], page: int, block: int, settings: InterleavedSettings) -> list[Block]:
    """From a place on to the end of what fits; over page ends where there is room."""
    taken, characters, images = list[Block](), 0, 0
    following = (block for later in pages[page + 1 :] for block in later.blocks)
    for part in chain(pages[page].blocks[block:], following):
        characters += len(part.text) if isinstance(part, Words) else 0
        images += isinstance(part, Shown)
        if characters > settings.characters[1] or images > settings.images[1]:
            break
        taken.append(part)
    return taken


def fits(blocks: Sequence[Block], settings: InterleavedSettings) -> bool:
    characters = sum(len(block.text) for block in blocks if isinstance(block, Words))
    images = sum(isinstance(block, Shown) for block in blocks)
    enough = characters >= settings.characters[0] and images >= settings.images[0]
    return enough and characters <= settings.characters_per_image * images


def build(settings: InterleavedSettings, count: int, held_out: bool, seed: int) -> Iterator[Record]:
    """At most ``count`` samples, each with another beginning, in an order fixed by ``seed``.

    Raises:
        UserError: a manual is missing, or nothing in it fits the settings.
    """
    pages: list[Page] = []
    for manual in settings.manuals:
        folder = find_manual(manual)
        pages += pages_of_split(read_manual(folder, settings.smallest_image), folder, held_out)
    places = starts(pages, settings)
    if not places and count:
        raise UserError("settings: nothing in the manuals has so many images and characters; allow for less")
    order = np.random.default_rng([seed, held_out]).permutation(len(places))[:count]
    for number, index in enumerate(order):
        page, block = places[index]
        yield _record(f"{number:06d}", cut(pages, page, block, settings))


def _record(key: str, blocks: Sequence[Block]) -> Record:
    media, parts = dict[str, bytes](), list[Part]()
    for block in blocks:
        if isinstance(block, Shown):
            name = f"{len(media)}{block.file.suffix.lower()}"
            media[name] = block.file.read_bytes()
            parts.append(image(name))
        elif parts and parts[-1]["type"] == "text":
            parts[-1]["text"] += block.text + "\n\n"
        else:
            parts.append(text(block.text + "\n\n"))
    return Record(key, document(parts, DOMAIN), media)
