"""The compiled part of mmsearch (`native/`): where it is there, it takes half of the time for the same pixels.

`pip install` compiles it if there is a C compiler. What it does not do, or where it is not there, Pillow does; each of
its functions gives None then, and else what Pillow gives, to the bit.
"""

import functools
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

VERSION = 1  # of native/module.c; one that was installed with other sources is left alone


def jpeg_eighth(data: memoryview) -> tuple[int, int, bytes] | None:
    """The bytes of a JPEG -> (width, height, pixels) at an eighth of its size; None for what is not plain.

    pixels: RGB, or grey where the file is. Not plain is what is damaged, in other colours, or seldom written so.
    """
    module = _module()
    return None if module is None else module.jpeg_eighth(data)


def resize(
    pixels: bytes, size: tuple[int, int], new_size: tuple[int, int], kept: tuple[int, int, int, int], is_bicubic: bool
) -> npt.NDArray[np.uint8] | None:
    """RGBX pixels of a picture -> (height, width, 3) uint8 RGB, what is kept of it when it is resized.

    size, new_size: (width, height). kept: (left, top, width, height) within the new size. Else bilinear. None for a
    reduction by hundreds. Rows are resized before columns, which Pillow does but for tall pictures.
    """
    module = _module()
    if module is None:
        return None
    into = np.empty((max(0, kept[3]), max(0, kept[2]), 3), dtype=np.uint8)
    return into if module.resize(pixels, size, new_size, kept, is_bicubic, into) else None


@functools.cache
def _module() -> Any:
    try:
        module = import_module("_mmsearch")
    except ImportError:
        return None
    return module if module.VERSION == VERSION else None
