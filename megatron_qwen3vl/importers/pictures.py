"""Images of a source's folder: found, their headers read, and places in them turned as the data path turns the pixels.

An image goes into a shard byte for byte. Where its EXIF asks for a turn, the data path applies it, so places that a
source gives for the stored pixels must be turned alike. Which of the two a source means is seen by the size it states:
``Photo.frame``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_qwen3vl.data.vision import stored_size
from megatron_qwen3vl.errors import BadSample, UserError
from megatron_qwen3vl.importers.files import picture, read_beside
from megatron_qwen3vl.recipes.boxes import SCALE, Box

Size = tuple[int, int]  # width, height in pixels
FRAMES = ("stored", "displayed")


@dataclass(frozen=True)
class Photo:
    """``name``: as its conversation names it. ``original``: the file as it was found; ``data``: the same, but for kinds
    of images that shards cannot hold. ``stored``: the size of the file's pixels. ``orientation``: EXIF's."""

    name: str
    original: bytes
    data: bytes
    stored: Size
    orientation: int

    @property
    def displayed(self) -> Size:
        width, height = self.stored
        return (height, width) if self.orientation >= 5 else (width, height)

    def frame(self, stated: Size | None, otherwise: str) -> Frame:
        """What the source's coordinates are about: the frame out of FRAMES that has the ``stated`` size; ``otherwise``
        where both have it (no turn, or one that keeps the size) or the source states none.

        Raises:
            BadSample: neither has that size; the annotations are about another file.
        """
        fits = {"stored": self.stored, "displayed": self.displayed}
        chosen = [name for name, size in fits.items() if stated is None or size == stated]
        if not chosen:
            wide, high = self.stored
            raise BadSample(f"the image has {wide} x {high} pixels, the annotations say {_times(stated)}")
        return Frame(self, (otherwise if otherwise in chosen else chosen[0]) == "displayed")


def _times(size: Size | None) -> str:
    return " x ".join(map(str, size or ()))


@dataclass(frozen=True)
class Frame:
    """Coordinates of a source, pixels from an upper left corner, to thousandths of the picture as it is displayed."""

    photo: Photo
    displayed: bool  # what the coordinates are about; else the stored pixels

    @property
    def size(self) -> Size:
        return self.photo.displayed if self.displayed else self.photo.stored

    def turn(self, x: float, y: float) -> tuple[float, float]:
        """Pixels of the displayed picture."""
        width, height = self.photo.stored
        orientation = 1 if self.displayed else self.photo.orientation
        mirrored_x, mirrored_y = width - x, height - y
        return {
            1: (x, y),
            2: (mirrored_x, y),
            3: (mirrored_x, mirrored_y),
            4: (x, mirrored_y),
            5: (y, x),
            6: (mirrored_y, x),
            7: (mirrored_y, mirrored_x),
            8: (y, mirrored_x),
        }[orientation]

    def box(self, left: float, top: float, right: float, bottom: float, smallest: float) -> Box | None:
        """The box, cut at the picture's edges, to the nearest thousandths and at least one of them wide and high.

        None where a side has fewer than ``smallest`` pixels inside the picture, or none at all.
        """
        width, height = self.size
        left, right = max(left, 0.0), min(right, float(width))
        top, bottom = max(top, 0.0), min(bottom, float(height))
        if not (right > left and bottom > top and min(right - left, bottom - top) >= smallest):
            return None
        first, second = self.turn(left, top), self.turn(right, bottom)
        wide, high = self.photo.displayed
        x = _apart(*sorted((first[0] * SCALE / wide, second[0] * SCALE / wide)))
        y = _apart(*sorted((first[1] * SCALE / high, second[1] * SCALE / high)))
        return x[0], y[0], x[1], y[1]

    def point(self, x: float, y: float) -> tuple[int, int] | None:
        """To the nearest thousandths; None outside the picture."""
        width, height = self.size
        if not (0 <= x <= width and 0 <= y <= height):
            return None
        x, y = self.turn(x, y)
        wide, high = self.photo.displayed
        return round(x * SCALE / wide), round(y * SCALE / high)


def _apart(low: float, high: float) -> tuple[int, int]:
    """Rounded, but never to one number."""
    first, second = round(low), round(high)
    if first == second:
        first, second = int(low), int(low) + 1
    return (first, second) if second <= SCALE else (SCALE - 1, SCALE)


def find_folder(given: str | None, guesses: Sequence[Path], source: Path) -> Path:
    """The folder of the images: what the user gave, or the first of the guesses that is there.

    Raises:
        UserError: there is none.
    """
    folders = [Path(given)] if given is not None else list(guesses)
    for folder in folders:
        if folder.is_dir():
            return folder
    places = " or ".join(str(folder) for folder in folders)
    raise UserError(f"{source}: its images are not in {places}; give their folder as images=DIR")


def read_photo(folder: Path, *candidates: str) -> Photo:
    """The first of ``candidates``, names inside ``folder``, that is there.

    Raises:
        BadSample: there is none, a name leads out of the folder, or the file is no image that can be trained with.
    """
    there = [name for name in candidates if "\0" not in name and (folder / name).is_file()]
    return load_photo(read_beside(folder, (there or candidates)[0]))


def load_photo(data: bytes) -> Photo:
    """Reads the header only.

    Raises:
        BadSample: it is no image's, or says more pixels than are ever decoded.
    """
    read = picture(data)
    height, width, orientation = stored_size(read.data)
    return Photo(f"0.{read.ending}", data, read.data, (width, height), orientation)
