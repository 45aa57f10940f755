"""What one sample may ask for, whatever its headers say. docs/security.md says why each number is what it is.

Beyond a limit a sample is bad, by name; nothing of that size is ever read, decoded or tokenised.
"""

from __future__ import annotations

MAX_TEXT_BYTES = 8 << 20  # of a .json or .txt: the worst text of half that size takes 1.3 GB and 12 s to tokenise
MAX_IMAGE_BYTES = 512 << 20
MAX_VIDEO_BYTES = 4 << 30
MAX_MEDIA = 65_536  # images and listed frames of one sample
MAX_DOMAIN = 128  # characters
MAX_IMAGE_PIXELS = 89_478_485  # Pillow's own first level: 1 GB while an image is decoded and resized
MAX_FRAME_PIXELS = 8192 * 4320
MAX_FRAMES = 1_000_000  # of a video file: 9 hours at 30 frames per second
MAX_EXTENDED_BYTES = 1 << 20  # of a tar's extended header: a name of that length is no name

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
VIDEO_EXTENSIONS = ("mp4", "m4v", "mov", "mkv", "webm", "avi", "ts", "mpg", "mpeg", "flv", "ogv", "wmv")


def most_bytes(name: str) -> int:
    """Of a sample's file of this name."""
    extension = extension_of(name)
    if extension in VIDEO_EXTENSIONS:
        return MAX_VIDEO_BYTES
    return MAX_IMAGE_BYTES if extension in IMAGE_EXTENSIONS else MAX_TEXT_BYTES


def extension_of(name: str) -> str:
    return name.rpartition(".")[2].lower()
