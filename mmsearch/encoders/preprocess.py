"""From an upright RGB picture to the very pixels that an image tower reads.

One place for it, since three need to agree: the decoding workers (which resize right after decoding, so that only
small arrays travel), `encode_images`, and the export of an open_clip model, whose own transform this reproduces.
Mean and standard deviation are not here: they are part of `image.onnx`, which takes plain uint8 pixels.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from mmsearch import compiled

if TYPE_CHECKING:
    from PIL import Image

Resize = Literal["shortest", "longest", "squash", "within"]
Interpolation = Literal["bicubic", "bilinear"]


@dataclass(frozen=True)
class PixelSpec:
    """How large, and fitted how, a picture has to be.

    shortest: the shorter side becomes the size, the rest is cut off around the centre (CLIP).
    longest: the longer side becomes the size, the rest is filled up.
    squash: both sides become the size, whatever the picture's own shape (SigLIP).
    within: the shape is kept and nothing is enlarged; the shorter side becomes at most the size (for encoders that
    resize by themselves).
    """

    width: int
    height: int
    resize: Resize = "shortest"
    interpolation: Interpolation = "bicubic"
    fill: int = 0  # grey level of what `longest` fills up, 0..255


LONGEST_WITHIN = 16  # `within` also bounds the longer side, at this many times the size: 1 x 100,000,000 is a legal PNG
_MAX_RESIZED_PIXELS = 2**24  # 50 MB; 224 x 224 gets there with a strip of 1 : 334


def fit(image: "Image.Image", spec: PixelSpec) -> npt.NDArray[np.uint8]:
    """An upright RGB picture -> (height, width, 3) uint8, to the pixel what open_clip's evaluation transform gives.

    Follows `open_clip.transform.image_transform_v2` and the torchvision functions that it calls, on PIL images; the
    roundings below are theirs. `within` gives the picture's own shape, the other three the shape of the spec.
    """
    if image.mode != "RGB":
        raise ValueError(f"fit reads RGB pictures, not {image.mode}")
    width, height = resized_size(image.width, image.height, spec)
    if spec.resize in ("squash", "within"):
        return _resized(image, (width, height), (0, 0, width, height), spec.interpolation)
    return _centre(image, (width, height), spec)


def resized_size(width: int, height: int, spec: PixelSpec) -> tuple[int, int]:
    """The (width, height) that a picture is resized to, before its centre is cut out or its edges are filled up."""
    if spec.resize == "squash":
        return spec.width, spec.height
    if spec.resize == "within":
        short, long = min(width, height), max(width, height)
        size = min(spec.width, spec.height)
        scale = min(1.0, size / short, LONGEST_WITHIN * size / long)
        return max(1, round(width * scale)), max(1, round(height * scale))
    if spec.resize == "shortest" and spec.width == spec.height:  # torchvision's Resize(int) cuts the fraction off
        long = int(spec.width * max(width, height) / min(width, height))
        return (spec.width, long) if width <= height else (long, spec.width)
    ratios = (height / spec.height, width / spec.width)
    ratio = max(ratios) if spec.resize == "longest" else min(ratios)
    return max(1, round(width / ratio)), max(1, round(height / ratio))  # open_clip fails where a side rounds to 0


def _filter(interpolation: str) -> "Image.Resampling":
    from PIL import Image  # here: a search by words has no use for it

    return Image.Resampling[interpolation.upper()]


def _centre(image: "Image.Image", size: tuple[int, int], spec: PixelSpec) -> npt.NDArray[np.uint8]:
    """Resize to `size`, then cut or fill up to the spec's shape around the centre."""
    width, height = size
    kept_w, kept_h = min(width, spec.width), min(height, spec.height)
    left, top = round((width - kept_w) / 2.0), round((height - kept_h) / 2.0)
    # For `shortest` with unequal sides open_clip does not hand the interpolation on, and so always takes bicubic.
    forgotten = spec.resize == "shortest" and spec.width != spec.height
    interpolation = "bicubic" if forgotten else spec.interpolation
    kept = _resized(image, size, (left, top, kept_w, kept_h), interpolation)
    if (kept_w, kept_h) == (spec.width, spec.height):
        return kept
    filled = np.full((spec.height, spec.width, 3), spec.fill, dtype=np.uint8)
    x, y = (spec.width - kept_w) // 2, (spec.height - kept_h) // 2
    filled[y : y + kept_h, x : x + kept_w] = kept
    return filled


def _resized(
    image: "Image.Image", size: tuple[int, int], kept: tuple[int, int, int, int], interpolation: Interpolation
) -> npt.NDArray[np.uint8]:
    """What is kept of an RGB picture that is resized to `size`: (left, top, width, height) of the result."""
    left, top, kept_w, kept_h = kept
    (width, height), (old_width, old_height) = size, image.size
    # Of tall pictures Pillow resizes the columns first: since 13.0 those that lose more than twice as much in height
    # as in width, before those of 1 : 100.
    is_tall = height < old_height and (old_height - height > 2 * (old_width - width) or old_height > 100 * old_width)
    resample = _filter(interpolation)
    if width * height <= _MAX_RESIZED_PIXELS:
        if not is_tall and size != image.size and old_width * old_height <= _MAX_RESIZED_PIXELS:
            pixels = compiled.resize(image.tobytes("raw", "RGBX"), image.size, size, kept, interpolation == "bicubic")
            if pixels is not None:
                return pixels
        return np.array(image.resize(size, resample).crop((left, top, left + kept_w, top + kept_h)))
    # a strip of 1 x 100,000 would become 224 x 22,400,000: compute what is kept only, which is nearly the same
    step_x, step_y = old_width / width, old_height / height
    box = (left * step_x, top * step_y, (left + kept_w) * step_x, (top + kept_h) * step_y)
    return np.array(image.resize((kept_w, kept_h), resample, box=_inside(box, image.size)))


def _inside(box: tuple[float, float, float, float], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Pillow refuses a box that leaves the picture by as little as a rounding error."""
    return max(0.0, box[0]), max(0.0, box[1]), min(float(size[0]), box[2]), min(float(size[1]), box[3])
