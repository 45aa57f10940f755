"""Real photographs that come with scikit-image, as backgrounds."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

# What each picture shows, in the words of the captions.
PHOTOS = {
    "astronaut.png": "an astronaut",
    "brick.png": "a brick wall",
    "camera.png": "a cameraman",
    "chelsea.png": "a cat",
    "coffee.png": "a cup of coffee",
    "coins.png": "old coins",
    "grass.png": "grass",
    "gravel.png": "gravel",
    "hubble_deep_field.jpg": "galaxies",
    "ihc.png": "stained cells",
    "moon.png": "the moon",
    "motorcycle_left.png": "a motorcycle",
    "retina.jpg": "a retina",
    "rocket.jpg": "a rocket",
}
SUBJECTS = tuple(PHOTOS.values())
HELD_OUT_SHARE = 0.3  # of each photograph's width, at its right edge


@cache
def load_photo(name: str, held_out: bool) -> np.ndarray:
    """The part of one of PHOTOS that belongs to the split, uint8 [height, width, 3], read-only.

    A photograph is divided into a left part for training and a right part for the held-out split, so that both know its
    subject and share no pixel.
    """
    import skimage

    with Image.open(Path(skimage.__file__).parent / "data" / name) as file:
        pixels = np.asarray(file.convert("RGB"))
    edge = round(pixels.shape[1] * (1 - HELD_OUT_SHARE))
    return pixels[:, edge:] if held_out else pixels[:, :edge]


def random_crop(rng: np.random.Generator, photo: np.ndarray, width: int, height: int) -> np.ndarray:
    """A crop at a random place and scale (up to the whole photo), resized to uint8 [height, width, 3]."""
    largest = min(photo.shape[1] / width, photo.shape[0] / height)
    scale = float(rng.uniform(1.0, largest)) if largest > 1 else largest
    crop_width, crop_height = round(width * scale), round(height * scale)
    left = int(rng.integers(0, photo.shape[1] - crop_width + 1))
    top = int(rng.integers(0, photo.shape[0] - crop_height + 1))
    crop = Image.fromarray(photo[top : top + crop_height, left : left + crop_width])
    return np.asarray(crop.resize((width, height), Image.Resampling.BOX))
