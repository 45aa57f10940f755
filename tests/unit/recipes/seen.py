"""What a picture of coloured things shows, read from its pixels: hue, connected parts, how they fill their box."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage
from scipy.signal import fftconvolve

HUES = {"red": 0, "orange": 31, "yellow": 53, "green": 127, "cyan": 185, "blue": 234, "purple": 277, "frame": 325}
SHAPES = {  # where each is, x to the right and y down, -1 to 1
    "square": lambda x, y: (abs(x) <= 1) & (abs(y) <= 1),
    "circle": lambda x, y: x * x + y * y <= 1,
    "triangle": lambda x, y: 2 * abs(x) <= y + 1,
    "cross": lambda x, y: (abs(x) < 0.34) | (abs(y) < 0.34),
    "diamond": lambda x, y: abs(x) + abs(y) <= 1,
    "ring": lambda x, y: (x * x + y * y <= 1) & (x * x + y * y >= 0.3),
}
VIVID = 70  # difference of the largest and the smallest channel; the backgrounds stay far below


def pixels(file: bytes) -> np.ndarray:
    """uint8 [height, width, 3]."""
    return np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))


@dataclass(frozen=True)
class Blob:
    """A connected part of one hue. ``mask`` bool over the whole picture."""

    colour: str
    box: tuple[int, int, int, int]  # right and bottom outside
    mask: np.ndarray
    picture: np.ndarray

    @property
    def centre(self) -> tuple[float, float]:
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2

    @property
    def size(self) -> int:
        return max(self.box[2] - self.box[0], self.box[3] - self.box[1])

    @cached_property
    def shape(self) -> str:
        """The shape whose own area over the box agrees with the part's in most pixels."""
        if self.colour == "frame":
            return "photo"
        left, top, right, bottom = self.box
        inside = self.mask[top:bottom, left:right]
        y, x = ((np.arange(n) + 0.5) / n * 2 - 1 for n in inside.shape)
        y, x = y[:, None], x[None, :]
        return max(SHAPES, key=lambda shape: (np.broadcast_to(SHAPES[shape](x, y), inside.shape) == inside).mean())

    @cached_property
    def texture(self) -> str:
        left, top, right, bottom = self.box
        inside = self.mask[top:bottom, left:right]
        level = self.picture[top:bottom, left:right].astype(float).max(-1)
        dark = (level < level[inside].max() * 0.78) & inside
        rows = dark.sum(1) / np.maximum(inside.sum(1), 1)
        if dark.sum() < 0.05 * inside.sum():
            return "plain"
        return "striped" if (rows > 0.8).sum() >= 2 else "dotted"

    @cached_property
    def name(self) -> str:
        if self.colour == "frame":
            left, top, right, bottom = self.box
            return f"photo of {nearest_photo(self.picture[top + 2 : bottom - 2, left + 2 : right - 2])}"
        name = f"{self.colour} {self.shape}"
        return name if self.texture == "plain" else f"{self.texture} {name}"


def hues(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Degrees, and where the picture is vivid enough to have any."""
    part = picture.astype(float)
    most, least = part.max(-1), part.min(-1)
    spread = np.maximum(most - least, 1)
    red, green, blue = (part[..., i] for i in range(3))
    hue = np.where(most == red, (green - blue) / spread, np.where(most == green, 2 + (blue - red) / spread,
                   4 + (red - green) / spread))  # fmt: skip
    return hue * 60 % 360, spread >= VIVID


def blobs(picture: np.ndarray, smallest: int = 20) -> list[Blob]:
    """Every coloured thing; what lies inside a photograph's frame belongs to the photograph."""
    hue, vivid = hues(picture)
    names = list(HUES)
    distance = np.stack([np.abs((hue - HUES[name] + 180) % 360 - 180) for name in names])
    nearest = distance.argmin(0)
    found = []
    for index, name in enumerate(names):
        labels, _ = ndimage.label(vivid & (nearest == index), np.ones((3, 3)))
        for number, (rows, columns) in enumerate(ndimage.find_objects(labels), 1):
            here = labels[rows, columns] == number
            if here.sum() >= smallest:
                mask = np.zeros(labels.shape, bool)
                mask[rows, columns] = here
                found.append(Blob(name, (columns.start, rows.start, columns.stop, rows.stop), mask, picture))
    frames = [blob for blob in found if is_frame(blob)]
    others = [blob for blob in found if blob.colour != "frame"]
    return frames + [blob for blob in others if not any(within(blob, frame) for frame in frames)]


def is_frame(blob: Blob) -> bool:
    left, top, right, bottom = blob.box
    edge = [blob.mask[top, left:right], blob.mask[bottom - 1, left:right], blob.mask[top:bottom, left]]
    return blob.colour == "frame" and min(side.mean() for side in edge) > 0.9 and blob.size >= 8


def within(blob: Blob, other: Blob) -> bool:
    return (
        blob.box[0] >= other.box[0] - 1
        and blob.box[1] >= other.box[1] - 1
        and blob.box[2] <= other.box[2] + 1
        and blob.box[3] <= other.box[3] + 1
    )


@cache
def photographs() -> dict[tuple[str, bool], np.ndarray]:
    """scikit-image's photographs, left 70% and right 30% of each, small."""
    from pathlib import Path

    import skimage

    from megatron_qwen3vl.recipes.photos import PHOTOS

    found = {}
    for file, subject in PHOTOS.items():
        with Image.open(Path(skimage.__file__).parent / "data" / file) as opened:
            whole = opened.convert("RGB")
        edge = round(whole.width * 0.7)
        for held_out, box in ((False, (0, 0, edge, whole.height)), (True, (edge, 0, whole.width, whole.height))):
            found[subject, held_out] = np.asarray(whole.crop(box).resize((16, 16), Image.Resampling.BOX), float)
    return found


def nearest_photo(crop: np.ndarray) -> str:
    small = np.asarray(Image.fromarray(crop).resize((16, 16), Image.Resampling.BOX), float)
    return min(photographs().items(), key=lambda item: ((item[1] - small) ** 2).sum())[0][0]


def overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Intersection over union of two boxes."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    area = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / area


def find_words(picture: np.ndarray, words: str, size: int, likeness: float = 0.9) -> list[tuple[int, int]]:
    """Where ``words`` are written in Pillow's default font of this size: the middles of the places, x and y.

    By normalised correlation with the words written anew, so that any two colours will do.
    """
    font = ImageFont.load_default(size)
    left, top, right, bottom = font.getbbox(words)
    pattern = Image.new("L", (int(right - left) + 4, int(bottom - top) + 4))
    ImageDraw.Draw(pattern).text((2 - left, 2 - top), words, 255, font)
    ink, grey = np.asarray(pattern, float), picture.astype(float).mean(-1)
    if ink.shape[0] > grey.shape[0] or ink.shape[1] > grey.shape[1]:
        return []
    ink = ink - ink.mean()
    window = np.ones_like(ink)
    mean = fftconvolve(grey, window, "valid") / ink.size
    spread = np.maximum(fftconvolve(grey**2, window, "valid") / ink.size - mean**2, 1e-6)
    score = np.abs(fftconvolve(grey, ink[::-1, ::-1], "valid")) / ink.size / np.sqrt(spread) / ink.std()
    score[spread < 25] = 0
    rows, columns = np.nonzero((score >= likeness) & (score == ndimage.maximum_filter(score, 5)))
    middles = zip(columns + ink.shape[1] // 2, rows + ink.shape[0] // 2, strict=True)
    return [(int(x), int(y)) for x, y in middles]
