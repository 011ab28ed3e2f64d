"""A picture file -> upright RGB pixels, and the facts about it: its size, its time, its place, its content hash.

The content decides what a file is, never its name, and only the formats listed here are ever tried: Pillow can open
many more, some of which start other programs. The plugin of the one format is called directly, without `Image.open`,
whose pixel limit is a setting of the whole process that belongs to the embedding program.

Pictures are made small as early as their format allows: a JPEG while it is decoded, the others before colours are
converted, in bands, so that what is needed beside the decoded picture stays small. Whatever a hostile file makes a
decoder raise comes out as a `MediaError`; what makes a decoder crash or hang is the business of `decoding`.
"""

import errno
import functools
import io
import math
import os
import stat
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import IO, TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops, ImageCms, ImageFile

from mmsearch import bitmaps, compiled, containers
from mmsearch.encoders.preprocess import PixelSpec, fit, resized_size
from mmsearch.errors import MediaError
from mmsearch.exif import ExifFacts, exif_block, read_exif
from mmsearch.facts import Decoded, ImageFacts
from mmsearch.hashing import hashed
from mmsearch.machine import DECODE_LIMIT, decode_limit_bytes

if TYPE_CHECKING:
    from PIL.ImageCms import ImageCmsTransform
    from PIL.TiffImagePlugin import TiffImageFile

Source: TypeAlias = str | os.PathLike[str] | bytes | IO[bytes] | Image.Image

MAX_PIXELS = 250_000_000  # a 200 megapixel telephone picture passes
SMALL_BYTES = 4_000_000  # what is decoded in less is done before the system has said how much memory is free
MAX_WHOLE_BYTES = 500_000_000  # of a file that its plugin reads into memory as a whole
MAX_STREAM_BYTES = 1_000_000_000  # of a source that cannot be read twice
READ_ONCE_BYTES = 64 * 2**20  # files up to here are read into memory, once, for both the hash and the decoder

# How many times larger than needed a picture has to stay when it is shrunk the cheap way, before it is resized well.
# JPEG: mean (lowest) cosine of `lite`'s features with those after full decoding, over 268 photographs and wallpapers:
# 1.0x 0.998 (0.963), 1.2x 0.9985 (0.979), 1.5x 0.9985 (0.973), 2x 0.9996 (0.989). To save the same pictures at quality
# 75 rather than 92 costs 0.9985 (0.974), to move them by one pixel 0.988 (0.969); the ten best for 192 queries change
# as much by the first of these. A 12 megapixel JPEG is decoded at 1/8 then, in 32 ms and not 40.
# The others, 16 photographs: Image.reduce at 2x 0.9975 (0.982), 3x 0.9998 (0.998).
JPEG_GAP = 1.2
J2K_GAP = 2
REDUCE_GAP = 3

_BAND_PIXELS = 2**22
_MAX_PROFILE_BYTES = 4 * 2**20

# Everything that decoders have been seen to raise for damaged files; a list, so that a mistake in here still shows.
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    AssertionError,
    EOFError,
    RuntimeError,
    BufferError,
    MemoryError,
    Warning,  # under python -W error
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)

# Of an OSError that a decoder raises for the picture: most have none, the others come of a place that no file has.
_PICTURES_ERRORS = (None, errno.EINVAL, errno.EOVERFLOW, errno.EFBIG)

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read(source: Source, spec: PixelSpec, *, max_bytes: int | None = None) -> Decoded:
    """Decode a picture to the pixels that an encoder needs, and read its facts.

    source: a path, the bytes of a file, an open binary file, or a PIL image, which is not changed. max_bytes: None is
    `machine.decode_limit_bytes`. Raises MediaError, whose text is the reason (`TooLargeError` if decoding would take
    more than `max_bytes` of memory), for what the file holds; and OSError, as `open` does, for a file that is not
    there or may not be read.
    """
    image, facts = _picture(source, spec, max_bytes)
    with _decoder_errors():
        return Decoded(fit(image, spec), facts)


def content_hash(path: str) -> str:
    """The hash of a file of any kind, as in `ImageFacts`. Raises as `read` does for what is no file."""
    with _open_regular(path) as file:
        return _hash(file)


def load_rgb(source: Source, spec: PixelSpec | None = None) -> Image.Image:
    """Upright, in sRGB, over white; in full size, or with a spec not much larger than needed. Raises as `read` does.

    What `fit` makes of it is what `read` gives.
    """
    if isinstance(source, Image.Image):
        with _decoder_errors():
            return _image_rgb(source, spec)[0]
    return _picture(source, spec, None)[0]


def thumbnail(source: Source, size_px: int, *, max_bytes: int | None = None) -> bytes:
    """A JPEG file without metadata whose longer side is at most `size_px`. Raises as `read` does."""
    image, _ = _picture(source, PixelSpec(size_px, size_px, resize="longest"), max_bytes)
    with _decoder_errors():
        image.thumbnail((size_px, size_px), Image.Resampling.BICUBIC, reducing_gap=None)
        out = io.BytesIO()
        Image.fromarray(np.asarray(image)).save(out, "JPEG", quality=85)  # via an array: pixels only, no metadata
        return out.getvalue()


class MachineError(MediaError):
    """The reason lies in this machine, in its memory or its packages: another time the file may be read."""


class TooLargeError(MachineError):
    """Decoding the picture would take more memory than was allowed; it may be tried again with more."""


def _picture(source: Source, spec: PixelSpec | None, max_bytes: int | None) -> tuple[Image.Image, ImageFacts]:
    """An upright RGB picture, no smaller than the spec needs it, with its facts."""
    if isinstance(source, Image.Image):
        return _from_image(source, spec)
    with _stream(source) as stream:
        format_ = sniff(stream)
        try:
            with _decoder_errors():
                if format_ == "WEBP":
                    width, height = containers.webp_size(stream)
                    _check_size(width, height)
                    _check_memory(width * height * _PIXEL_BYTES[format_], max_bytes)
                image = _open(stream, format_)
                size = _within_limits(image)
                turned = read_exif(_exif_block(image)).orientation  # of a PNG it may be known only after the pixels
                by_plugin = getattr(image, "tag_v2", {}).get(0x0112) in _UPRIGHT  # a TIFF; not if its type is BYTE
                loaded = _loaded(image, format_, spec, turned, stream, max_bytes)
                if format_ == "TIFF":
                    exif, size = read_exif(stream), image.size
                    exif = replace(exif, orientation=1) if by_plugin else exif
                else:
                    exif = read_exif(_exif_block(image))
                rgb = _upright_rgb(loaded, spec, exif.orientation)
        except MachineError:
            raise
        except MediaError as error:
            if isinstance(error.__cause__, Exception) and _is_cut_short(stream, format_, error.__cause__):
                raise MediaError("is cut short") from error.__cause__
            raise
        return rgb, _facts(_hash(stream), size, format_, exif)


def _from_image(source: Image.Image, spec: PixelSpec | None) -> tuple[Image.Image, ImageFacts]:
    """For a picture that a program holds in memory; its hash is of its pixels."""
    with _decoder_errors():
        rgb, exif = _image_rgb(source, spec)
        content = hashed((f"{source.mode} {source.size}".encode(), source.tobytes()))
        return rgb, _facts(content, source.size, source.format or "pixels", exif)


def _image_rgb(source: Image.Image, spec: PixelSpec | None) -> tuple[Image.Image, ExifFacts]:
    """An upright RGB copy, no smaller than the spec needs it."""
    _within_limits(source)
    if source.format == "TIFF" and getattr(source, "tile", []):  # opened and not loaded
        _tiff_as_drawn(source)  # type: ignore[arg-type]
    source.load()
    exif = read_exif(_exif_block(source) or _exif_in_memory(source))
    return _upright_rgb(source, spec, exif.orientation), exif


def _exif_in_memory(source: Image.Image) -> bytes:
    """What a program put in, which Pillow keeps apart from what it read in a file."""
    if isinstance(source, ImageFile.ImageFile) or "xmp" in source.info:  # where Pillow would look for an orientation
        return b""
    exif = source.getexif()
    return exif.tobytes() if len(exif) else b""


def _facts(content_hash: str, size: tuple[int, int], format_: str, exif: ExifFacts) -> ImageFacts:
    width, height = size[::-1] if exif.orientation >= 5 else size
    return ImageFacts(
        content_hash, width, height, format_, exif.taken_at, exif.camera, exif.latitude_deg, exif.longitude_deg
    )


# Files


@contextmanager
def _stream(source: "str | os.PathLike[str] | bytes | IO[bytes]") -> Iterator[IO[bytes]]:
    """The source as a seekable binary file; small ones are in memory, so that no change on disk is seen half way."""
    if isinstance(source, bytes):
        yield io.BytesIO(source)
    elif isinstance(source, (str, os.PathLike)):
        with _open_regular(os.fspath(source)) as file:
            yield file
    else:
        data = source.read(MAX_STREAM_BYTES + 1)
        if len(data) > MAX_STREAM_BYTES:
            raise MediaError("is larger than 1 GB")
        yield io.BytesIO(data)


@contextmanager
def _open_regular(path: str) -> Iterator[IO[bytes]]:
    """Open for reading what is a regular file; a pipe or a device is refused, and is not waited for."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags)
    except ValueError as error:  # a NUL in the name
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from error
    except PermissionError as error:
        if os.name == "nt" and os.path.isdir(path):  # Windows opens no folder, and does not say why
            raise MediaError("is a folder") from error
        raise
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket
            raise MediaError("is not a regular file") from error
        raise
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise MediaError("is a folder" if stat.S_ISDIR(status.st_mode) else "is not a regular file")
    with os.fdopen(descriptor, "rb") as file:
        if status.st_size > READ_ONCE_BYTES:
            yield file
        else:
            yield io.BytesIO(file.read(READ_ONCE_BYTES))


def _hash(stream: IO[bytes]) -> str:
    if isinstance(stream, io.BytesIO):
        return hashed([stream.getbuffer()])
    stream.seek(0)
    return hashed(iter(lambda: stream.read(2**20), b""))


# Formats


def sniff(stream: IO[bytes]) -> str:
    """The format by its first bytes, as in `ImageFacts.format`. Raises MediaError for all else."""
    stream.seek(0)
    head = stream.read(512)
    for magic, format_ in (
        (b"\xff\xd8\xff", "JPEG"),
        (b"\x89PNG\r\n\x1a\n", "PNG"),
        (b"GIF87a", "GIF"),
        (b"GIF89a", "GIF"),
        (b"II*\0", "TIFF"),
        (b"MM\0*", "TIFF"),
        (b"II+\0", "TIFF"),
        (b"MM\0+", "TIFF"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG2000"),
        (b"\xff\x4f\xff\x51", "JPEG2000"),
        (b"BM", "BMP"),
    ):
        if head.startswith(magic):
            return format_
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp":
        return _sniff_brands(head)
    if bitmaps.is_dib(head):
        return "BMP"
    raise MediaError(_what_else(head))


def _sniff_brands(head: bytes) -> str:
    """HEIC and AVIF are the same container; the brands that a file declares say which of them, or a film, it is."""
    length = min(max(int.from_bytes(head[:4], "big"), 16), len(head))
    brands = {head[8:12], *(head[at : at + 4] for at in range(16, length - 3, 4))}
    if brands & {b"avif", b"avis"}:
        return "AVIF"
    if brands & {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}:
        return "HEIC"
    raise MediaError("is a film, or another file that is no picture, in an MP4 container")


def _what_else(head: bytes) -> str:
    """Why a file is not a picture, in words that help to find out what it is."""
    if not head:
        return "is empty"
    if head.startswith(b"%PDF"):
        return "is a PDF document, not a picture"
    if b"<svg" in head:
        return "is an SVG drawing, and only pictures made of pixels are read"
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        text = head[: error.start].decode("utf-8") if error.start >= len(head) - 3 else "\0"  # cut within a letter
    if all(letter.isprintable() or letter in "\t\n\r\f" for letter in text):
        return "is text, not a picture"
    if not head.strip(b"\0"):
        return "is filled with zeros, not a picture"
    return "is not in a picture format that is known"


def _open(stream: IO[bytes], format_: str) -> ImageFile.ImageFile:
    """Read the header; no pixel is decoded. Damage to metadata is passed over."""
    try:
        return _open_as_it_is(stream, format_)
    except _DECODER_ERRORS as error:
        if isinstance(error, MemoryError):
            raise
        for view in containers.without_damaged_metadata(stream, format_):
            with suppress(*_DECODER_ERRORS):
                return _open_as_it_is(view, format_)
        raise  # the first error, which says more than what is wrong with the views


def _open_as_it_is(stream: IO[bytes], format_: str) -> ImageFile.ImageFile:
    """Read the header with the one plugin for the format."""
    stream.seek(0)
    if format_ in ("WEBP", "AVIF", "HEIC"):  # these plugins read the whole file at once
        size_bytes = stream.seek(0, os.SEEK_END)
        stream.seek(0)
        if size_bytes > MAX_WHOLE_BYTES:
            raise MediaError(f"is a {format_} file of {size_bytes / 1e6:.0f} MB, more than is read")
    if format_ == "JPEG":
        from PIL.JpegImagePlugin import JpegImageFile  # not its factory, which looks for the further pictures of an MPO

        return JpegImageFile(stream)
    if format_ == "PNG":
        from PIL.PngImagePlugin import PngImageFile

        chunks, metadata = containers.png_and_metadata(stream)
        png = PngImageFile(chunks)
        png.info.update(metadata)
        return png
    if format_ == "WEBP":
        from PIL.WebPImagePlugin import WebPImageFile

        return WebPImageFile(stream)
    if format_ == "GIF":
        from PIL.GifImagePlugin import GifImageFile

        return GifImageFile(stream)
    if format_ == "TIFF":
        return _open_tiff(stream)
    if format_ == "BMP":
        return bitmaps.open_bmp(stream)
    if format_ == "JPEG2000":
        from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile

        space = containers.jp2_colour_space(stream)
        if space in _NO_RGB:
            raise MediaError(f"keeps its colours as {_NO_RGB[space]}, which is not read in a JPEG 2000")
        stream.seek(0)
        j2k = Jpeg2KImageFile(stream)
        j2k.info["exif"] = containers.jp2_exif(stream)
        return j2k
    if format_ == "AVIF":
        from PIL.AvifImagePlugin import AvifImageFile

        return AvifImageFile(stream)
    try:
        from pi_heif import HeifImageFile  # type: ignore[import-untyped,unused-ignore]
    except ImportError as error:
        raise MachineError("is HEIC, and the package pi-heif that reads it does not work here") from error
    image: ImageFile.ImageFile = HeifImageFile(stream)
    return image


_NO_RGB = {14: "CIELab", 19: "CIEJab", 24: "e-sYCC"}  # Pillow would take the first two for RGB


def _open_tiff(stream: IO[bytes]) -> ImageFile.ImageFile:
    from PIL.TiffImagePlugin import TiffImageFile

    file = containers.tiff_as_pillow_reads_it(stream)
    try:
        image = TiffImageFile(file)
    except SyntaxError as error:
        if "unknown pixel mode" not in str(error):
            raise
        raise MediaError(f"keeps its pixels as {containers.tiff_layout(file)}, which is not read in a TIFF") from error
    return _tiff_as_drawn(image)


# libtiff gives samples in the byte order of the machine, whatever the file's is; Pillow heeds it for 16 bits alone
_NATIVE = {
    "I;16S": "I;16NS",
    "I;16BS": "I;16NS",
    "I;32S": "I;32NS",
    "I;32BS": "I;32NS",
    "F;32F": "F;32NF",
    "F;32BF": "F;32NF",
}
_PLANES_BY_LIBTIFF = ("RGB", "RGBA", "CMYK")


def _tiff_as_drawn(image: "TiffImageFile") -> "TiffImageFile":
    """With the layouts set right that Pillow gets wrong. Raises MediaError for what it cannot read."""
    tile, tags = image.tile[0], image.tag_v2
    if len(image.getbands()) > 1 and tags.get(284) == 2:  # a plane for each colour
        if image.mode not in _PLANES_BY_LIBTIFF:
            raise MediaError("keeps its colours in separate planes, which is read of RGB and CMYK alone")
        if tile.codec_name == "raw":  # Pillow takes 16 bits for 8
            image.use_load_libtiff = True
            raw_mode = image.mode if tags.get(258, (8,))[0] == 8 else f"{image.mode};16N"
            whole = (0, 0, tags[256], tags[257])
            image.tile = [
                tile._replace(codec_name="libtiff", extents=whole, offset=0, args=(raw_mode, False, tags.offset))
            ]
    elif tile.codec_name == "raw":
        boxes = [tile.extents or (0, 0, 0, 0) for tile in image.tile]
        if sum((right - left) * (lower - upper) for left, upper, right, lower in boxes) < image.width * image.height:
            raise MediaError("is cut short")  # Pillow leaves what is missing black
    elif tile.codec_name == "libtiff":
        assert isinstance(tile.args, tuple)
        image.tile = [tile._replace(args=(_NATIVE.get(tile.args[0], tile.args[0]), *tile.args[1:]))]
    return image


def _exif_block(image: Image.Image) -> bytes:
    return exif_block(image.info)


def _j2k_levels(stream: IO[bytes]) -> int:
    """How often a JPEG 2000 picture can be halved while it is decoded: the COD marker, ISO 15444-1 annex A.6.1."""
    stream.seek(containers.j2k_start(stream))
    head = stream.read(2**16)
    if not head.startswith(b"\xff\x4f\xff\x51") or any(head[16:24]):  # of an image that is cut out of its grid, sizes
        return 0  # are not the halves of each other
    at = 2
    while 2 <= at <= len(head) - 10 and head[at] == 0xFF and head[at + 1] != 0x90:
        if head[at + 1] == 0x52:
            return min(head[at + 9], 32)
        at += 2 + int.from_bytes(head[at + 2 : at + 4], "big")
    return 0


# Decoding, as small as it may be


def _within_limits(image: Image.Image) -> tuple[int, int]:
    width, height = image.size
    if width < 1 or height < 1:
        raise MediaError("has no pixels")
    _check_size(width, height)
    return width, height


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise MediaError(f"is {width:,} x {height:,} pixels, more than the {MAX_PIXELS // 10**6} million that are read")


def _loaded(
    image: ImageFile.ImageFile,
    format_: str,
    spec: PixelSpec | None,
    orientation: int,
    stream: IO[bytes],
    max_bytes: int | None,
) -> Image.Image:
    """The first frame, with its pixels; of JPEG and JPEG 2000, at a fraction of its size if the spec allows it."""
    full_size, halvings = image.size, 0
    wanted = None
    if spec is not None:
        width, height = _needed(full_size, spec, orientation)
        if format_ == "JPEG":
            wanted = math.ceil(width * JPEG_GAP), math.ceil(height * JPEG_GAP)
            image.draft(None, wanted)
        elif format_ == "JPEG2000":
            fraction = min(full_size[0] // (width * J2K_GAP), full_size[1] // (height * J2K_GAP))
            halvings = min(max(1, fraction).bit_length() - 1, _j2k_levels(stream))
            _halve(image, halvings)
    position = stream.tell()
    file_bytes = stream.seek(0, os.SEEK_END)
    stream.seek(position)
    n_bytes = _decode_bytes(image, format_, full_size, halvings, file_bytes)
    _check_memory(n_bytes, max_bytes)
    if format_ == "JPEG" and (small := _eighth(image, stream)) is not None:
        return small
    try:
        image.load()
    except OSError as error:
        mended = _mended(image, format_, error, stream, halvings, wanted, max_bytes)
        if mended is None:
            raise
        return mended
    return image


def _mended(
    image: ImageFile.ImageFile,
    format_: str,
    error: OSError,
    stream: IO[bytes],
    halvings: int,
    wanted: tuple[int, int] | None,
    max_bytes: int | None,
) -> Image.Image | None:
    """The pixels of a file that lacks its end, or has wrong counts of tile parts; None where they cannot be had."""
    if getattr(image, "tag_v2", {}).get(259) == 50001:
        raise MediaError("is a TIFF compressed with WebP, which Pillow was built without") from error
    if format_ == "JPEG2000" and (parts := containers.j2k_with_part_counts(stream)) is not None:
        counted = _open(parts, format_)
        _halve(counted, halvings)
        counted.load()
        return counted
    if "truncated" not in str(error):
        return None
    if format_ == "JPEG":
        return _jpeg_without_end(image, wanted, stream, max_bytes)
    if image.tile and image.tile[0].codec_name in ("raw", bitmaps.DECODER):
        tail = bytes(int(containers.size_of(stream) * LOST_SHARE))
        whole = _open(containers.with_tail(stream, tail), format_)
        whole.load()
        return whole
    return None


def _check_memory(n_bytes: int, max_bytes: int | None) -> None:
    if n_bytes <= SMALL_BYTES and max_bytes is None:
        return
    most = decode_limit_bytes() if max_bytes is None else max_bytes
    if n_bytes > most:
        raise TooLargeError(
            f"needs {n_bytes / 1e6:,.0f} MB of memory to be decoded and may take {most / 1e6:,.0f}; "
            f"{DECODE_LIMIT} sets another limit"
        )


def _halve(image: ImageFile.ImageFile, times: int) -> None:
    """Have a JPEG 2000 image decoded at a fraction. Pillow has a setting for it, and rounds half sides up alone."""
    if times == 0:
        return
    width, height = (-(-side >> times) for side in image.size)  # rounded up, as in ISO 15444-1 annex B.5
    tile = image.tile[0]
    assert isinstance(tile.args, tuple)
    image._size = width, height
    image.tile = [tile._replace(extents=(0, 0, width, height), args=(tile.args[0], times, *tile.args[2:]))]


# A JPEG whose end is missing is read where no more than this share of the image went with it, or one block of an image
# of several; libjpeg leaves that part grey. So is a file of bare pixels (BMP, TIFF). One that lacks more is cut short:
# half an image is not what was indexed. Of the other formats the decoders give nothing without the end of the pixels.
LOST_SHARE = 1 / 32
_JPEG_END = b"\xff\xd9"
_FILLERS = (bytes(2**16), b"\xa5" * 2**16)  # to be decoded in place of the end; they begin with other codes


def _jpeg_without_end(
    image: ImageFile.ImageFile, wanted: tuple[int, int] | None, stream: IO[bytes], max_bytes: int | None
) -> Image.Image | None:
    """A JPEG that ends before libjpeg has all of it, as libjpeg completes it; None where too much of it is missing."""
    if not isinstance(stream, io.BytesIO) or not containers.has_every_scan(stream.getvalue()):
        return None
    # An eighth shows what is missing, but in progressive files, whose last scans are of details
    compared = None if image.info.get("progressive") else wanted
    if compared is None:
        _check_memory(_decode_bytes(image, "JPEG", image.size, 0, 0), max_bytes)
    stuffing = b"\0" * stream.getvalue().endswith(b"\xff")  # else the filler would make a marker of it
    one, other = (_jpeg_with_tail(stream, stuffing + filler + _JPEG_END, compared) for filler in _FILLERS)
    box = ImageChops.difference(one, other).getbbox()
    if box is not None:
        full = _open(stream, "JPEG")
        across, down = (8 * max((layer[at] for layer in getattr(full, "layer", [])), default=1) for at in (1, 2))
        width, height = -(-full.width // across), -(-full.height // down)  # in blocks
        # Colours at half the size, when they are enlarged, change one pixel of the block before as well
        row = (box[1] + 1) * full.height // one.height // down
        bottom = min(one.height, -(-(row + 1) * down * one.height // full.height))
        first = ImageChops.difference(one, other).crop((0, 0, one.width, bottom)).getbbox() or box
        column = (first[0] + 1) * full.width // one.width // across
        lost = (height - row) * width - column
        if lost > max(width * height * LOST_SHARE, min(1, width * height // 4)):
            return None
    return _jpeg_with_tail(stream, _JPEG_END, wanted)


def _jpeg_with_tail(stream: IO[bytes], tail: bytes, wanted: tuple[int, int] | None) -> Image.Image:
    image = _open(containers.with_tail(stream, tail), "JPEG")
    image.draft(None, wanted)
    image.load()
    return image


def _eighth(image: ImageFile.ImageFile, stream: IO[bytes]) -> Image.Image | None:
    """A JPEG that is to be loaded at an eighth, after `draft`, in half of the time; None if libjpeg has to load it."""
    if image.decoderconfig[:1] != (8,) or not isinstance(stream, io.BytesIO):
        return None
    decoded = compiled.jpeg_eighth(stream.getbuffer())
    if decoded is None:
        return None
    width, height, pixels = decoded
    if (width, height) != image.size or len(pixels) != width * height * len(image.getbands()):
        return None
    small = Image.frombytes(image.mode, image.size, pixels)
    small.info, small.format = image.info, image.format
    return small


def _needed(size: tuple[int, int], spec: PixelSpec, orientation: int) -> tuple[int, int]:
    """What a picture will be resized to, in the file's own orientation."""
    if orientation < 5:
        return resized_size(size[0], size[1], spec)
    height, width = resized_size(size[1], size[0], spec)
    return width, height


_PIXEL_BYTES = {"WEBP": 16, "AVIF": 10, "HEIC": 10}


def _decode_bytes(image: Image.Image, format_: str, full_size: tuple[int, int], halvings: int, file_bytes: int) -> int:
    """About how much memory loading this picture takes, its copies inside the decoders included.

    Bytes for one pixel, from the peak of the process while a 48 megapixel picture was decoded, rounded up.
    """
    full_pixels = full_size[0] * full_size[1]
    pixel_bytes = 1 if image.mode in ("1", "L", "P") else 2 if image.mode.startswith("I;16") else 4
    if format_ == "JPEG":
        n_bytes = image.size[0] * image.size[1] * pixel_bytes + file_bytes
        if image.info.get("progressive"):  # libjpeg keeps the coefficients of the whole picture, 16 bit each
            layers = [(across, down) for _, across, down, _ in getattr(image, "layer", [])]
            largest = max((across for across, _ in layers), default=1) * max((down for _, down in layers), default=1)
            n_bytes += 2 * full_pixels * sum(across * down for across, down in layers) // max(1, largest)
        return n_bytes
    if format_ == "JPEG2000":
        return (full_pixels * 28 >> 2 * halvings) + 2 * file_bytes
    return full_pixels * _PIXEL_BYTES.get(format_, 2 * pixel_bytes if format_ == "TIFF" else pixel_bytes)


def _upright_rgb(image: Image.Image, spec: PixelSpec | None, orientation: int) -> Image.Image:
    """A new picture: made small, in sRGB, over white, turned upright, and without metadata that could turn it again."""
    factor = 1
    if spec is not None:
        width, height = _needed(image.size, spec, orientation)
        factor = max(1, min(image.width // (width * REDUCE_GAP), image.height // (height * REDUCE_GAP)))
    profile = image.info.get("icc_profile")
    rgb = _over_white(_to_srgb(_shrunk(image, factor), profile if isinstance(profile, bytes) else b""))
    if orientation in _UPRIGHT:
        rgb = rgb.transpose(_UPRIGHT[orientation])
    rgb.info = {}
    return rgb


# Colours


def _shrunk(image: Image.Image, factor: int) -> Image.Image:
    """The picture in L, RGB, RGBA or CMYK, reduced by a whole factor, band by band so that no full copy is made."""
    levels = _levels(image) if image.mode[0] in "IF" or _sample_type(image) == np.int8 else None
    samples = _sample_type(image)
    if factor == 1:
        small = _plain(image, levels, samples)
    else:
        width, height = -(-image.width // factor), -(-image.height // factor)
        pieces = ((top // factor, _plain(band, levels, samples).reduce(factor)) for top, band in _bands(image, factor))
        _, first = next(pieces)
        small = Image.new(first.mode, (width, height))
        small.paste(first, (0, 0))
        for top, piece in pieces:
            small.paste(piece, (0, top))
    if small.mode == "CMYK" and image.format == "JPEG" and "adobe" not in image.info:
        return ImageChops.invert(small)  # Pillow takes every CMYK JPEG for one of Adobe's, which are written inverted
    return small


def _bands(image: Image.Image, factor: int) -> Iterator[tuple[int, Image.Image]]:
    """(top, band); every band but the last is a multiple of the factor high."""
    rows = factor * max(1, _BAND_PIXELS // (image.width * factor))
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _sample_type(image: Image.Image) -> type[np.generic] | None:
    """What the numbers of a TIFF are that Pillow takes for others; None for what its mode says."""
    tags = getattr(image, "tag_v2", {})
    signed, bits = tags.get(339, (1,))[0] == 2, tags.get(258, (1,))[0]
    if image.mode == "I" and bits == 32 and not signed:
        return np.uint32
    if image.mode == "L" and bits == 8 and signed:
        return np.int8
    return None


def _plain(image: Image.Image, levels: tuple[float, float] | None, samples: type[np.generic] | None) -> Image.Image:
    """A copy in a mode that can be averaged: L, RGB, RGBA or CMYK."""
    if levels is not None:
        black, white = levels
        values = _values(image, samples)
        grey = (values.astype(np.float64) - black) * (255.0 / (white - black))
        shown = np.nan_to_num(grey, nan=0.0).clip(0, 255).round().astype(np.uint8)
        if image.mode.startswith("I;16") and isinstance(image.info.get("transparency"), int):
            shown[values == image.info["transparency"]] = 255  # over white
        return Image.fromarray(shown)
    if image.has_transparency_data:
        return (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    if image.mode == "1":
        return image.convert("L")
    return image.convert(image.mode if image.mode in ("L", "CMYK") else "RGB")


def _values(image: Image.Image, samples: type[np.generic] | None) -> npt.NDArray[np.generic]:
    values = np.asarray(image)
    return values if samples is None else values.view(samples)


def _levels(image: Image.Image) -> tuple[float, float]:
    """What is black and what is white in a picture of more than 8 bits a pixel; Pillow itself would cut at 255."""
    tags = getattr(image, "tag_v2", {})
    if image.mode.startswith("I;16"):
        black, white = 0.0, 4095.0 if tags.get(258) == (12,) else 65535.0
    else:
        black, white = _range(image)
        signed = tags.get(339, (1,))[0] == 2 and tags.get(258, (32,))[0]
        full_scales = {16: (32767.0,), 8: (127.0,)}.get(signed, (1.0, 255.0, 65535.0, 2.0**32 - 1))
        usual = [full for full in full_scales if white <= full and (full > 1.0 or image.mode == "F")]
        if black >= 0.0 and usual:
            black, white = 0.0, usual[0]
        elif black == white:
            white = black + 1.0
    return (white, black) if tags.get(262) == 0 else (black, white)  # TIFF's WhiteIsZero


def _range(image: Image.Image) -> tuple[float, float]:
    """The lowest and the highest finite value."""
    lows, highs = [], []
    samples = _sample_type(image)
    for _, band in _bands(image, 1):
        values = _values(band, samples)
        finite = values[np.isfinite(values)]
        if finite.size:
            lows.append(float(finite.min()))
            highs.append(float(finite.max()))
    return min(lows, default=0.0), max(highs, default=0.0)


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """By the colour profile inside the file; a profile that is broken, or of another colour space, is left aside."""
    if not 128 <= len(profile) <= _MAX_PROFILE_BYTES:  # 128 is the length of the header
        return image
    colours = image.convert("RGB") if image.mode == "RGBA" else image
    transform = _transform(profile, colours.mode)
    if transform is None:
        return image
    srgb = ImageCms.applyTransform(colours, transform)
    if srgb is None:
        return image
    if image.mode == "RGBA":
        srgb.putalpha(image.getchannel("A"))
    return srgb


@functools.lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> "ImageCmsTransform | None":
    """Made once for a profile: cameras write the same one into every picture, and making it takes milliseconds."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        return ImageCms.buildTransform(source, _srgb(), mode, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


@functools.cache
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def _over_white(image: Image.Image) -> Image.Image:
    if image.mode != "RGBA":
        return image.convert("RGB")
    white = Image.new("RGB", image.size, (255, 255, 255))
    white.paste(image.convert("RGB"), mask=image.getchannel("A"))
    return white


# Reasons


@contextmanager
def _decoder_errors() -> Iterator[None]:
    """Whatever a decoder raises becomes a MediaError."""
    try:
        yield
    except MemoryError as error:
        raise MachineError("needs more memory to be decoded than there is") from error
    except _DECODER_ERRORS as error:
        if isinstance(error, OSError) and error.errno not in _PICTURES_ERRORS:
            raise  # the disk, the network or the machine, not the picture
        raise MediaError(f"cannot be decoded ({_one_line(error)})") from error


def _one_line(error: BaseException) -> str:
    """The text of an error, short, and without the path that an OSError may hold."""
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return " ".join(text.split())[:120]


def _is_cut_short(stream: IO[bytes], format_: str, cause: BaseException) -> bool:
    """Whether a file that could not be decoded ends before its format says that it should."""
    if isinstance(cause, EOFError) or "truncated" in str(cause).lower():
        return True
    try:
        length = stream.seek(0, os.SEEK_END)
        stream.seek(0)
        head = stream.read(16)
        stream.seek(max(0, length - 4096))
        tail = stream.read(4096)
    except (OSError, ValueError):
        return False
    if format_ == "JPEG":
        return b"\xff\xd9" not in tail
    if format_ == "PNG":
        return b"IEND" not in tail
    if format_ == "GIF":
        return b";" not in tail[-64:]
    if format_ == "WEBP":
        return int.from_bytes(head[4:8], "little") + 8 > length
    if format_ == "BMP" and head.startswith(b"BM"):
        return int.from_bytes(head[2:6], "little") > length
    if format_ == "TIFF" and head[2:4] in (b"*\0", b"\0*"):
        return int.from_bytes(head[4:8], "little" if head[0] == ord("I") else "big") >= length
    if format_ in ("HEIC", "AVIF") or head.startswith(b"\0\0\0\x0cjP"):
        return _boxes_end(stream, length) > length
    return format_ == "JPEG2000" and b"\xff\xd9" not in tail


def _boxes_end(stream: IO[bytes], length: int) -> int:
    """Where the last of an ISO media file's top boxes says that it ends."""
    end = 0
    for _ in range(64):
        if end >= length:
            break
        stream.seek(end)
        header = stream.read(16)
        size = int.from_bytes(header[:4], "big")
        if size == 1:
            size = int.from_bytes(header[8:16], "big")
        if size < 8:  # 0: up to the end of the file
            break
        end += size
    return end
