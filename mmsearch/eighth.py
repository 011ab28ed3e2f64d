"""A JPEG at an eighth of its size, which is all that is needed of a photograph.

Done by the compiled part of mmsearch (native/jpeg.c), to the bit what libjpeg-turbo gives, in half of its time:
most of the time that a photograph takes is spent on passing over coefficients which at this size say nothing. Where
that part was not compiled, or a file is not plain (progressive, damaged, in four colours), libjpeg does it.
"""

import io
from collections.abc import Callable
from importlib import import_module
from typing import IO

from PIL import Image, ImageFile

VERSION = 1  # of native/jpeg.c; one that was installed with other sources is left alone

_Decode = Callable[[memoryview], tuple[int, int, bytes] | None]


def _compiled() -> _Decode | None:
    try:
        module = import_module("_mmsearch")
    except ImportError:
        return None
    decode: _Decode = module.jpeg_eighth
    return decode if module.VERSION == VERSION else None


decode: _Decode | None = _compiled()


def eighth(image: ImageFile.ImageFile, stream: IO[bytes]) -> Image.Image | None:
    """The pixels of an opened JPEG that is to be loaded at an eighth of its size; None if libjpeg has to load them.

    image: as Pillow opened it from `stream`, and after `draft`. What it knows (`info`, `format`) the new one knows.
    """
    if decode is None or not isinstance(stream, io.BytesIO) or image.decoderconfig[:1] != (8,):
        return None
    decoded = decode(stream.getbuffer())
    if decoded is None:
        return None
    width, height, pixels = decoded
    if (width, height) != image.size or len(pixels) != width * height * len(image.getbands()):
        return None
    small = Image.frombytes(image.mode, image.size, pixels)
    small.info, small.format = image.info, image.format
    return small
