"""Damaged JPEGs, without end; and a run of them, and of all kinds of resizing, through the compiled part.

`python -m tests.damage FOLDER COUNT` is that run, with the `_mmsearch` in the folder: a test compiles one there with
sanitizers, which end the process at the first byte that is read or written outside of what it was given.
"""

import io
import itertools
import random
import sys
from collections.abc import Iterator

from PIL import Image

from tests import pictures
from tests.pictures import Size


def jpeg(image: Image.Image, **how: object) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", **how)
    return out.getvalue()


def damaged_jpegs(seed: int) -> Iterator[bytes]:
    """One to three bytes are changed, half of them in the header; some are cut short besides."""
    draw = random.Random(seed)
    whole = [_whole(draw, number) for number in range(40)]
    while True:
        data = bytearray(draw.choice(whole))
        for _ in range(draw.randrange(1, 4)):
            at = draw.randrange(len(data) if draw.random() < 0.5 else min(len(data), 700))
            data[at] = draw.choice([draw.randrange(256), 0, 255, data[at] ^ (1 << draw.randrange(8))])
        yield bytes(data[: draw.randrange(len(data))] if draw.random() < 0.1 else data)


def _whole(draw: random.Random, number: int) -> bytes:
    width, height = draw.randrange(8, 100), draw.randrange(8, 100)
    if number % 2:
        image = pictures.scene((width, height), number)
    else:
        image = Image.frombytes("RGB", (width, height), draw.randbytes(3 * width * height))
    return jpeg(
        image.convert("L") if number % 5 == 0 else image,
        quality=draw.randrange(1, 101),
        subsampling=draw.choice(["4:4:4", "4:2:2", "4:2:0"]),
        optimize=number % 4 == 0,
        restart_marker_blocks=draw.randrange(1, 9) if number % 3 == 0 else 0,
        progressive=number % 3 == 1,
    )


def resizings(seed: int) -> Iterator[tuple[bytes, Size, Size, tuple[int, int, int, int], bool]]:
    """(RGBX, size, new size, what is kept, is bicubic), of pictures that are not tall."""
    draw = random.Random(seed)
    while True:
        width, height, new_width = draw.randrange(1, 120), draw.randrange(1, 120), draw.randrange(1, 120)
        new_height = draw.randrange(max(1, height - 2 * max(0, width - new_width)), 121)
        left, top = draw.randrange(new_width), draw.randrange(new_height)
        kept = (left, top, draw.randint(1, new_width - left), draw.randint(1, new_height - top))
        yield draw.randbytes(4 * width * height), (width, height), (new_width, new_height), kept, draw.random() < 0.5


def main() -> None:
    folder, count = sys.argv[1:]
    sys.path.insert(0, folder)
    import _mmsearch

    assert _mmsearch.__file__.startswith(folder)
    n_decoded = sum(_mmsearch.jpeg_eighth(data) is not None for data in itertools.islice(damaged_jpegs(5), int(count)))
    for pixels, size, new_size, kept, is_bicubic in itertools.islice(resizings(5), int(count) // 10):
        left, top, width, height = kept
        resized = bytearray(3 * width * height)
        assert _mmsearch.resize(pixels, size, new_size, kept, is_bicubic, resized)
        image = Image.frombytes("RGB", size, pixels, "raw", "RGBX")
        by_pillow = image.resize(new_size, Image.Resampling.BICUBIC if is_bicubic else Image.Resampling.BILINEAR)
        assert resized == by_pillow.crop((left, top, left + width, top + height)).tobytes()
    sys.stdout.write(f"{n_decoded} of {count} decoded\n")


if __name__ == "__main__":
    main()
