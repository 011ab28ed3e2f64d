"""BMP files that Pillow does not read: colours in any bits of a pixel, other headers, and none for the file (DIB).

Such a file is shown to Pillow with a header that it knows. Where its colours lie in bits that Pillow has no name for,
they are unpacked here, some rows at a time. The layouts are Microsoft's and OS/2's; the files that show them are those
of Jason Summers' bmpsuite.
"""

import struct
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile

from mmsearch import containers
from mmsearch.errors import MediaError

if TYPE_CHECKING:
    from PIL.BmpImagePlugin import BmpImageFile

DECODER = "mmsearch_bitfields"  # among Pillow's decoders

_FILE_HEADER = 14
_BY_PILLOW = (12, 40, 52, 56, 64, 108, 124)  # bytes of a header
_BITFIELDS, _JPEG, _PNG, _ALPHA_BITFIELDS = 3, 4, 5, 6  # how pixels are kept
_HUFFMAN, _RUNS = 3, 4  # the same numbers in a header of OS/2
_BAND_PIXELS = 2**18


class _Header(NamedTuple):
    start: int  # 0 of a DIB, which begins with it
    size: int
    fields: bytes  # 36, from the width on; zero is what a short header leaves out
    bits: int
    compression: int
    colours: int  # in the palette
    masks: tuple[int, int, int, int]  # red, green, blue, alpha; 0 for none
    pixels: int  # where they begin


def is_dib(head: bytes) -> bool:
    """Whether a file begins with the header of a bitmap, as it lies in memory or on a clipboard."""
    if len(head) < 40 or int.from_bytes(head[:4], "little") not in _BY_PILLOW[1:]:
        return False
    width, height, planes, bits, compression = struct.unpack_from("<iiHHI", head, 4)
    return width > 0 and height != 0 and planes == 1 and bits in (1, 4, 8, 16, 24, 32) and compression <= 6


def open_bmp(file: IO[bytes]) -> "BmpImageFile":
    """Read the header; no pixel is decoded. Raises what Pillow raises, or MediaError, for what is not read."""
    from PIL.BmpImagePlugin import BmpImageFile

    header = _header(file)
    if header is None:
        file.seek(0)
        return BmpImageFile(file)
    if header.size != 64 and header.compression in (_JPEG, _PNG):
        raise MediaError("holds a JPEG or PNG file inside of a BMP, which is not read")
    if header.size == 64 and header.compression in (_HUFFMAN, _RUNS):
        raise MediaError("is compressed as OS/2 does it, which is not read")
    try:
        return BmpImageFile(_known(file, header))
    except OSError:
        if header.compression not in (_BITFIELDS, _ALPHA_BITFIELDS) or not _is_layout(header):
            raise
    image = BmpImageFile(_plain(file, header))
    tile = image.tile[0]
    image._mode = "RGBA" if header.masks[3] else "RGB"
    image.tile = [tile._replace(codec_name=DECODER, args=(header.masks, header.bits, tile.args[-1]))]  # type: ignore[index]
    return image


def _header(file: IO[bytes]) -> _Header | None:
    """None for what Pillow reads by itself, or says what is wrong with it."""
    file.seek(0)
    data = file.read(_FILE_HEADER + 60)
    start = _FILE_HEADER if data.startswith(b"BM") else 0
    size = int.from_bytes(data[start : start + 4], "little")
    if len(data) < start + 16 or size < 16 or (size > 64 and size not in _BY_PILLOW):
        return None
    fields = data[start + 4 : start + min(size, 40)].ljust(36, b"\0")
    bits, compression = struct.unpack_from("<HI", fields, 10)
    colours = int.from_bytes(fields[28:32], "little")
    masks, behind = _masks(data[start + 40 : start + 56].ljust(16, b"\0"), size, compression)
    if bits <= 8:
        colours = min(colours or 1 << bits, 1 << bits)  # as browsers do where a palette is longer than it can be
    pixels = int.from_bytes(data[10:14], "little") if start else size + behind + 4 * colours
    return _Header(start, size, fields, bits, compression, colours, masks, pixels)


def _masks(data: bytes, size: int, compression: int) -> tuple[tuple[int, int, int, int], int]:
    """The masks, and how many of their bytes are behind the header and not in it."""
    red, green, blue, alpha = struct.unpack("<4I", data)
    has_alpha = compression == _ALPHA_BITFIELDS or size >= 56
    behind = {_BITFIELDS: 12, _ALPHA_BITFIELDS: 16}.get(compression, 0) if size == 40 else 0
    return (red, green, blue, alpha if has_alpha else 0), behind


def _is_layout(header: _Header) -> bool:
    """Whether each colour has bits, and these lie in one piece inside the pixel."""
    runs = [mask // (mask & -mask) for mask in header.masks if mask]
    return (
        header.bits in (16, 32)
        and any(header.masks[:3])
        and all(run & run + 1 == 0 for run in runs)
        and max(header.masks) < 1 << header.bits
    )


def _known(file: IO[bytes], header: _Header) -> IO[bytes]:
    """The file, with a header that Pillow knows and a palette no longer than it can be."""
    size = header.size if header.size in _BY_PILLOW else 40 if header.size < 40 else 64
    given = int.from_bytes(header.fields[28:32], "little")
    if header.start and size == header.size and (header.bits > 8 or given in (0, header.colours)):
        file.seek(0)
        return file
    fields = header.fields[:28] + header.colours.to_bytes(4, "little") + header.fields[32:]
    end = header.start + header.size
    rest = (end, max(0, containers.size_of(file) - end))
    beyond = max(40, header.size)  # of the header, what `fields` lacks, and what it is to have more
    more: list[containers.Part] = [(header.start + 40, beyond - 40), bytes(size - beyond)]
    pixels = max(0, header.pixels - end) + _FILE_HEADER + size
    return containers.view(file, [_file_header(pixels), struct.pack("<I", size), fields, *more, rest])


def _plain(file: IO[bytes], header: _Header) -> IO[bytes]:
    """The file as if its pixels were not of masks, of as many bits."""
    start = header.pixels or header.start + header.size
    fields = header.fields[:12] + bytes(24)
    rest = (start, max(0, containers.size_of(file) - start))
    return containers.view(file, [_file_header(_FILE_HEADER + 40), struct.pack("<I", 40), fields, rest])


def _file_header(pixels: int) -> bytes:
    return b"BM" + struct.pack("<III", 0, 0, pixels)


class _Bitfields(ImageFile.PyDecoder):
    """Unpacks pixels of 16 or 32 bits by masks, from the file into the image, a band of rows at a time."""

    _pulls_fd = True

    def decode(self, buffer: Any) -> tuple[int, int]:
        """Raises OSError where the file ends too early."""
        assert self.fd is not None and self.im is not None
        masks, bits, direction = self.args
        width, height = self.state.xsize, self.state.ysize
        row_bytes = -(-width * bits // 32) * 4
        rows = max(1, _BAND_PIXELS // width)
        for top in range(0, height, rows):
            count = min(rows, height - top)
            data = self.fd.read(row_bytes * count)
            if len(data) < row_bytes * count:
                raise OSError("image file is truncated")
            values = np.frombuffer(data, f"<u{bits // 8}").reshape(count, -1)[::direction, :width]
            band = np.dstack([_eight_bits(values, mask) for mask in masks[: len(self.mode)]])
            upper = top if direction == 1 else height - top - count
            self.im.paste(Image.fromarray(band).im, (0, upper, width, upper + count))
        return -1, 0


def _eight_bits(values: npt.NDArray[np.unsignedinteger], mask: int) -> npt.NDArray[np.uint8]:
    """What is under a mask, as 0..255."""
    if mask == 0:
        return np.zeros(values.shape, np.uint8)
    unit = mask & -mask
    most = mask // unit
    found = (values & values.dtype.type(mask)).astype(np.uint64) // np.uint64(unit)
    return ((found * np.uint64(255) + np.uint64(most // 2)) // np.uint64(most)).astype(np.uint8)


Image.register_decoder(DECODER, _Bitfields)
