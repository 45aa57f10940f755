"""Pictures of separate things (coloured shapes, framed photographs) on a background: what several domains ask about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from PIL import Image

from megatron_qwen3vl.errors import UserError
from megatron_qwen3vl.recipes import grammar
from megatron_qwen3vl.recipes.boxes import Box
from megatron_qwen3vl.recipes.photos import PHOTOS, load_photo, random_crop
from megatron_qwen3vl.recipes.record import jpeg, png
from megatron_qwen3vl.recipes.shapes import paint, shape_mask
from megatron_qwen3vl.recipes.splits import belongs

# Far apart in hue: the grey backgrounds (and the checks) tell all of them from each other and from nothing.
COLOURS = {name: grammar.COLOURS[name] for name in ("red", "green", "blue", "yellow")} | {
    "orange": (255, 130, 0),
    "cyan": (0, 200, 220),
    "purple": (150, 40, 220),
}
FRAME = (255, 0, 150)  # around photographs only
FRAME_WIDTH = 2  # pixels
SHAPES = (*grammar.SHAPES, "diamond", "ring")
TEXTURES = ("plain", "striped", "dotted")
BACKGROUNDS = ("plain", "grey", "shaded", "noise", "photo")
PHOTO = "photo"  # in place of a shape
SHADE = 0.55  # of the colour, in stripes and dots
T = TypeVar("T")
TRIES = 60  # random places for one thing before the scene is begun anew


@dataclass(frozen=True)
class SceneSettings:
    """``things`` and ``kinds``: fewest and most of a picture; several things of one kind look alike."""

    canvases: tuple[tuple[int, int], ...]  # width, height in pixels; one is drawn for each picture
    things: tuple[int, int]
    kinds: tuple[int, int]
    sizes: tuple[float, float]  # smallest and largest side, as shares of the canvas's shorter side
    grid: int  # pixels: places and sizes are multiples of it (1: anywhere)
    shapes: tuple[str, ...]  # one that stands there twice is drawn twice as often; so the next three
    colours: tuple[str, ...]
    textures: tuple[str, ...]
    backgrounds: tuple[str, ...]
    photo_share: float  # of the kinds, how many are framed photographs

    def __post_init__(self) -> None:
        named = {"shapes": SHAPES, "colours": tuple(COLOURS), "textures": TEXTURES, "backgrounds": BACKGROUNDS}
        problems = [
            f"settings.scene.{key}: {name} is unknown; there are {', '.join(known)}"
            for key, known in named.items()
            for name in vars(self)[key]
            if name not in known
        ]
        problems += [f"settings.scene.{key}: name at least one" for key in named if not vars(self)[key]]
        if problems:
            raise UserError(problems)


@dataclass(frozen=True)
class Kind:
    colour: str
    shape: str  # or PHOTO, and then ``colour`` is the photograph's file
    texture: str

    @property
    def name(self) -> str:
        if self.shape == PHOTO:
            return f"photo of {PHOTOS[self.colour]}"
        name = f"{self.colour} {self.shape}"
        return name if self.texture == "plain" else f"{self.texture} {name}"


@dataclass(frozen=True)
class Thing:
    kind: Kind
    box: Box

    @property
    def name(self) -> str:
        return self.kind.name

    @property
    def size(self) -> int:
        return self.box[2] - self.box[0]

    @property
    def centre(self) -> tuple[float, float]:
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2

    @property
    def point(self) -> tuple[float, float]:
        """The middle of the box; where the thing has a hole there, the centre of its pixel nearest to the middle."""
        mask, middle = thing_mask(self.kind.shape, self.size), self.size / 2
        if mask[self.size // 2, self.size // 2]:
            return self.centre
        rows, columns = np.nonzero(mask)
        nearest = int(np.argmin((rows + 0.5 - middle) ** 2 + (columns + 0.5 - middle) ** 2))
        return self.box[0] + int(columns[nearest]) + 0.5, self.box[1] + int(rows[nearest]) + 0.5


@dataclass(frozen=True)
class Scene:
    """``things`` in reading order: by row of the box's top, then by column."""

    canvas: tuple[int, int]
    background: str
    things: tuple[Thing, ...]

    def named(self, name: str) -> tuple[Thing, ...]:
        return tuple(thing for thing in self.things if thing.name == name)

    @property
    def names(self) -> tuple[str, ...]:
        """Each name once, in order."""
        return tuple(dict.fromkeys(thing.name for thing in self.things))


def draw_scene(rng: np.random.Generator, settings: SceneSettings, held_out: bool) -> Scene:
    """A scene of this split: the split follows from the things and their places."""
    while True:
        canvas = pick(rng, settings.canvases)
        things = _place(rng, settings, canvas)
        facts = f"{canvas} {sorted((thing.name, thing.box) for thing in things)}"
        if len(things) >= settings.things[0] and belongs(facts, held_out):
            return Scene(canvas, pick(rng, settings.backgrounds), tuple(things))


def _place(rng: np.random.Generator, settings: SceneSettings, canvas: tuple[int, int]) -> list[Thing]:
    wanted = int(rng.integers(settings.things[0], settings.things[1] + 1))
    kinds = _kinds(rng, settings, min(wanted, int(rng.integers(settings.kinds[0], settings.kinds[1] + 1))))
    grid, gap = settings.grid, max(2, settings.grid // 2)
    shorter = min(canvas)
    least, most = (max(1, round(share * shorter / grid)) for share in settings.sizes)
    things: list[Thing] = []
    for number in range(wanted):
        # each kind at least once, then any
        kind = kinds[number] if number < len(kinds) else pick(rng, kinds)
        for _ in range(TRIES):
            size = int(rng.integers(least, most + 1)) * grid
            left, top = (int(rng.integers(0, (side - size) // grid + 1)) * grid for side in canvas)
            box = (left, top, left + size, top + size)
            if not any(_near(box, other.box, gap) for other in things):
                things.append(Thing(kind, box))
                break
    return sorted(things, key=lambda thing: (thing.box[1], thing.box[0]))


def _near(a: Box, b: Box, gap: int) -> bool:
    return a[0] < b[2] + gap and b[0] < a[2] + gap and a[1] < b[3] + gap and b[1] < a[3] + gap


def _kinds(rng: np.random.Generator, settings: SceneSettings, count: int) -> list[Kind]:
    kinds: list[Kind] = []
    possible = len(set(settings.shapes)) * len(set(settings.colours))
    while len(kinds) < min(count, possible):
        if rng.random() < settings.photo_share:
            kind = Kind(pick(rng, tuple(PHOTOS)), PHOTO, "plain")
        else:
            kind = Kind(pick(rng, settings.colours), pick(rng, settings.shapes), pick(rng, settings.textures))
        # never two textures of one coloured shape: "the red circle" would mean either
        if all((kind.colour, kind.shape) != (other.colour, other.shape) for other in kinds):
            kinds.append(kind)
    return kinds


def pick(rng: np.random.Generator, choices: Sequence[T]) -> T:
    return choices[int(rng.integers(0, len(choices)))]


def thing_mask(shape: str, size: int) -> np.ndarray:
    """bool [size, size]: where the thing is."""
    axis = (np.arange(size) + 0.5) / size * 2 - 1
    y, x = axis[:, None], axis[None, :]
    if shape == PHOTO:
        return np.ones((size, size), bool)
    if shape == "diamond":
        return np.abs(x) + np.abs(y) <= 1 + 1 / size
    if shape == "ring":
        return (x**2 + y**2 <= 1) & (x**2 + y**2 >= 0.3)
    return shape_mask(shape, size)


def paint_scene(rng: np.random.Generator, scene: Scene, held_out: bool) -> np.ndarray:
    """uint8 [height, width, 3]. Backgrounds are greyish, things are not."""
    pixels = _background(rng, scene, held_out)
    for thing in scene.things:
        left, top, right, bottom = thing.box
        if thing.kind.shape == PHOTO:
            pixels[top:bottom, left:right] = FRAME
            inner = thing.size - 2 * FRAME_WIDTH
            photo = Image.fromarray(load_photo(thing.kind.colour, held_out)).resize((inner, inner))
            pixels[top + FRAME_WIDTH : bottom - FRAME_WIDTH, left + FRAME_WIDTH : right - FRAME_WIDTH] = photo
            continue
        mask, colour = thing_mask(thing.kind.shape, thing.size), COLOURS[thing.kind.colour]
        paint(pixels, mask, left, top, colour)
        dark = tuple(round(level * SHADE) for level in colour)
        paint(pixels, mask & _texture(thing.kind.texture, thing.size), left, top, (dark[0], dark[1], dark[2]))
    return pixels


def _texture(texture: str, size: int) -> np.ndarray:
    """bool [size, size]: where the darker shade goes."""
    step = max(2, size // 8)
    y, x = np.arange(size)[:, None] // step, np.arange(size)[None, :] // step
    if texture == "striped":
        return np.broadcast_to(y % 2 == 1, (size, size))
    if texture == "dotted":
        return (y % 2 == 1) & (x % 2 == 1)
    return np.zeros((size, size), bool)


def _background(rng: np.random.Generator, scene: Scene, held_out: bool) -> np.ndarray:
    width, height = scene.canvas
    if scene.background == "photo":
        crop = random_crop(rng, load_photo(pick(rng, tuple(PHOTOS)), held_out), width, height)
        grey = crop.mean(-1) * rng.uniform(0.5, 1.0)
    elif scene.background == "shaded":
        across, down = np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height))
        angle = rng.uniform(0, 2 * np.pi)
        grey = rng.integers(70, 180) + rng.integers(20, 60) * (np.cos(angle) * across + np.sin(angle) * down)
    elif scene.background == "noise":
        grey = rng.integers(50, 200) + rng.normal(0, 12, (height, width))
    elif scene.background == "grey":
        return np.full((height, width, 3), rng.integers(118, 138), np.uint8)
    else:
        grey = np.full((height, width), rng.integers(0, 256))
    tint = rng.uniform(0.92, 1.0, 3)  # a little warm or cold
    return np.clip(grey[..., None] * tint, 0, 255).astype(np.uint8)


def encode(scene: Scene, pixels: np.ndarray) -> tuple[str, bytes]:
    """The picture's name in its sample, and its file: PNG, or JPEG where there is a photograph in it."""
    photographs = scene.background in ("photo", "noise") or any(t.kind.shape == PHOTO for t in scene.things)
    return ("0.jpg", jpeg(pixels)) if photographs else ("0.png", png(pixels))
