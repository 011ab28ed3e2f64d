"""Writes BMP files in the layouts that Pillow does not write: bitfields, headers of any length, none for the file."""

import struct

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.uint8]  # (height, width, 3 or 4)


def bitfields(
    samples: Samples,
    bits: int,
    masks: tuple[int, ...],
    *,
    header: int = 40,
    compression: int = 3,
    top_down: bool = False,
    dib: bool = False,
) -> bytes:
    """Pixels of 16 or 32 bits, colours where the masks say. header: its bytes; dib: without one of the file."""
    height, width, _ = samples.shape
    packed = np.zeros((height, width), np.uint64)
    for number, mask in enumerate(masks):
        unit = mask & -mask
        if mask:
            packed += np.rint(samples[:, :, number] / 255.0 * (mask // unit)).astype(np.uint64) * np.uint64(unit)
    rows = packed.astype(f"<u{bits // 8}")
    padded = np.pad(rows, ((0, 0), (0, width % 2 if bits == 16 else 0)))
    fields = struct.pack("<IiiHHI20x", header, width, -height if top_down else height, 1, bits, compression)
    kept = struct.pack(f"<{len(masks)}I", *masks)
    behind = fields + kept.ljust(header - 40, b"\0")
    return _with_file_header(behind, (padded if top_down else padded[::-1]).tobytes(), dib)


def palette(
    samples: npt.NDArray[np.uint8], colours: bytes, *, header: int = 40, count: int = 256, dib: bool = False
) -> bytes:
    """Pixels of 8 bits (height, width), and a palette of four bytes a colour. count: how long it is said to be."""
    height, width = samples.shape
    fields = struct.pack("<IiiHHIIiiII", header, width, height, 1, 8, 0, 0, 0, 0, count, 0).ljust(header, b"\0")
    padded = np.pad(samples, ((0, 0), (0, -width % 4)))
    return _with_file_header(fields[:header] + colours, padded[::-1].tobytes(), dib)


def _with_file_header(header: bytes, pixels: bytes, dib: bool) -> bytes:
    start = b"" if dib else b"BM" + struct.pack("<III", 14 + len(header) + len(pixels), 0, 14 + len(header))
    return start + header + pixels
