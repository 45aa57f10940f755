"""Real photographs that come with scikit-image, as backgrounds."""

from __future__ import annotations

from pathlib import Path

import numpy as np

# What each picture shows, in the words of the captions. The held-out ones are never seen in training.
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


def load_photo(name: str) -> np.ndarray:
    """One of PHOTOS as uint8 [height, width, 3]."""
    import skimage
    from PIL import Image

    path = Path(skimage.__file__).parent / "data" / name
    return np.asarray(Image.open(path).convert("RGB"))
