"""Writes TIFF files in the layouts that Pillow does not write: planes, tiles, orders of bytes, predictors."""

import struct
import zlib
from collections.abc import Mapping
from typing import Literal

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.generic]  # (height, width, samples) of uint8, uint16, uint32, int8, int16, int32, float32

_TYPES = {"H": 3, "I": 4, "Q": 16}
_FORMATS = {"u": 1, "i": 2, "f": 3}


def tiff(
    samples: Samples,
    photometric: int,
    *,
    order: Literal["<", ">"] = "<",
    extra: tuple[int, ...] = (),
    planes: bool = False,
    tile: int = 0,
    compression: Literal["none", "deflate", "packbits"] = "none",
    predictor: Literal[1, 2, 3] = 1,
    rows_per_strip: int = 7,
    big: bool = False,
    names: Mapping[int, int] | None = None,
) -> bytes:
    """A TIFF file of one image; tile: the side of its tiles, 0 for strips. extra: what the last samples are.

    big: a BigTIFF. names: other numbers for tags, 0 to leave one out.
    """
    height, width, count = samples.shape
    layers = [samples[:, :, number : number + 1] for number in range(count)] if planes else [samples]
    blocks = []
    for layer in layers:
        if tile:
            padded = np.pad(layer, ((0, -height % tile), (0, -width % tile), (0, 0)))
            blocks += [
                padded[top : top + tile, left : left + tile]
                for top in range(0, height, tile)
                for left in range(0, width, tile)
            ]
        else:
            blocks += [layer[top : top + rows_per_strip] for top in range(0, height, rows_per_strip)]
    data = [_packed(_predicted(block, order, predictor), compression) for block in blocks]
    head = 16 if big else 8
    offsets = [head + sum(map(len, data[:number])) for number in range(len(data))]
    bits = samples.dtype.itemsize * 8
    tags: dict[int, tuple[str, list[int]]] = {
        256: ("I", [width]),
        257: ("I", [height]),
        258: ("H", [bits] * count),
        259: ("H", [{"none": 1, "deflate": 8, "packbits": 32773}[compression]]),
        262: ("H", [photometric]),
        277: ("H", [count]),
        284: ("H", [2 if planes else 1]),
        339: ("H", [_FORMATS[samples.dtype.kind]] * count),
    }
    if tile:
        tags |= {322: ("I", [tile]), 323: ("I", [tile]), 324: ("I", offsets), 325: ("I", [len(part) for part in data])}
    else:
        tags |= {273: ("I", offsets), 278: ("I", [rows_per_strip]), 279: ("I", [len(part) for part in data])}
    if predictor != 1:
        tags[317] = ("H", [predictor])
    if extra:
        tags[338] = ("H", list(extra))
    if photometric == 6:
        tags[530] = ("H", [1, 1])
    body = b"".join(data)
    body += b"\0" * (len(body) % 2)
    tags = {(names or {}).get(tag, tag): value for tag, value in tags.items()}
    tags.pop(0, None)
    start = head + len(body)
    pointing, inline = (order + "Q", 8) if big else (order + "I", 4)
    values = b""
    directory = struct.pack(order + ("Q" if big else "H"), len(tags))
    end = start + len(directory) + (4 + 2 * inline) * len(tags) + inline
    for tag, (kind, numbers) in sorted(tags.items()):
        kind = "Q" if big and tag in (273, 279, 324, 325) else kind
        packed = struct.pack(f"{order}{len(numbers)}{kind}", *numbers)
        directory += struct.pack(order + "HH", tag, _TYPES[kind]) + struct.pack(pointing, len(numbers))
        if len(packed) > inline:
            directory += struct.pack(pointing, end + len(values))
            values += packed
        else:
            directory += packed.ljust(inline, b"\0")
    magic = b"II" if order == "<" else b"MM"
    magic += struct.pack(order + "HHHQ", 43, 8, 0, start) if big else struct.pack(order + "HI", 42, start)
    return magic + body + directory + bytes(inline) + values


def _predicted(block: Samples, order: str, predictor: int) -> bytes:
    if predictor == 2:
        unsigned = block.view(f"u{block.itemsize}").copy()
        unsigned[:, 1:] -= block.view(f"u{block.itemsize}")[:, :-1]
        return unsigned.astype(unsigned.dtype.newbyteorder(order)).tobytes()
    if predictor == 3:  # Adobe's for floats: the bytes of a row apart by significance, then differences
        rows = []
        for row in block.astype(">f4"):
            apart = row.reshape(-1).view(np.uint8).reshape(-1, 4).T.reshape(-1)
            step = block.shape[2]
            rows.append(np.concatenate([apart[:step], apart[step:] - apart[:-step]]).tobytes())
        return b"".join(rows)
    return block.astype(block.dtype.newbyteorder(order)).tobytes()


def _packed(data: bytes, compression: str) -> bytes:
    if compression == "deflate":
        return zlib.compress(data)
    if compression == "packbits":  # literal runs alone
        return b"".join(bytes([len(data[at : at + 128]) - 1]) + data[at : at + 128] for at in range(0, len(data), 128))
    return data
