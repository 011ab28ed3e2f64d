"""What is known of a picture, and which files may be pictures.

Apart from `media`, which imports the decoders: a search by words is spared them.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# fmt: off
IMAGE_SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".tif", ".tiff", ".bmp", ".dib",
    ".heic", ".heics", ".heif", ".heifs", ".hif", ".avif", ".avifs", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx",
})
# fmt: on


@dataclass(frozen=True)
class ImageFacts:
    """What is known about a picture beside its pixels.

    content_hash: of the whole file, by `hashing.hashed`. width, height: pixels of the upright picture, before it was
    made smaller. taken_at: as in `exif.ExifFacts`, a time or a day alone; never the file's time.
    """

    content_hash: str
    width: int
    height: int
    format: str
    taken_at: str | None = None
    camera: str | None = None
    latitude_deg: float | None = None
    longitude_deg: float | None = None


@dataclass(frozen=True)
class Decoded:
    """pixels: (height, width, 3) uint8 that own their memory, as `preprocess.fit` makes them for the spec."""

    pixels: npt.NDArray[np.uint8]
    facts: ImageFacts
