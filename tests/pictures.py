"""Draws the picture files that the tests read: good ones of every format, odd ones, and hostile ones.

All of them are real files, made on the spot and the same for the same seed; none is kept in the repository.
"""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageCms, ImageDraw

Size = tuple[int, int]  # (width, height)

QUADRANTS = {
    "top left": (220, 30, 30),
    "top right": (30, 200, 30),
    "bottom left": (30, 30, 220),
    "bottom right": (90, 90, 90),
}


def scene(size: Size = (640, 480), seed: int = 0) -> Image.Image:
    """Something like a photograph: soft colours at several scales, a few things with edges, a little grain."""
    rng = np.random.default_rng(seed)
    width, height = size
    soft = np.zeros((height, width, 3), dtype=np.float32)
    for cells in (3, 9, 40):
        noise = rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
        soft += np.asarray(Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC), dtype=np.float32) / cells**0.5
    soft *= 255.0 / max(1.0, float(soft.max()))
    tile = rng.normal(0, 6, (256, 256, 1)).astype(np.float32)
    soft += np.tile(tile, (height // 256 + 1, width // 256 + 1, 1))[:height, :width]
    image = Image.fromarray(soft.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(6):
        x, y = int(rng.integers(0, width)), int(rng.integers(0, height))
        w, h = int(rng.integers(1, width // 3 + 2)), int(rng.integers(1, height // 3 + 2))
        colour = tuple(int(part) for part in rng.integers(0, 256, 3))
        draw.ellipse((x, y, x + w, y + h), fill=colour, outline=(20, 20, 20))
    return image


def quadrants(size: Size = (320, 200)) -> Image.Image:
    """Four plain colours, so that a test can tell which way is up, and whether a colour is right."""
    width, height = size
    image = Image.new("RGB", size)
    for number, colour in enumerate(QUADRANTS.values()):
        left, top = (number % 2) * (width // 2), (number // 2) * (height // 2)
        image.paste(
            colour, (left, top, width - (1 - number % 2) * (width // 2), height - (1 - number // 2) * (height // 2))
        )
    return image


def exif(
    *,
    orientation: int | None = None,
    taken_at: str | None = None,
    offset: str | None = None,
    make: str | None = None,
    model: str | None = None,
    latitude_deg: float | None = None,
    longitude_deg: float | None = None,
) -> bytes:
    """An EXIF block as a camera writes it; taken_at is in EXIF's own form, "2019:07:14 10:20:30"."""
    block = Image.Exif()
    for tag, value in ((0x0112, orientation), (0x010F, make), (0x0110, model)):
        if value is not None:
            block[tag] = value
    shot = {tag: value for tag, value in ((0x9003, taken_at), (0x9011, offset)) if value is not None}
    if shot:
        block.get_ifd(0x8769).update(shot)
    if latitude_deg is not None and longitude_deg is not None:
        block.get_ifd(0x8825).update(
            {
                1: "N" if latitude_deg >= 0 else "S",
                2: _degrees_minutes_seconds(latitude_deg),
                3: "E" if longitude_deg >= 0 else "W",
                4: _degrees_minutes_seconds(longitude_deg),
            }
        )
    return block.tobytes()


def _degrees_minutes_seconds(degrees: float) -> tuple[float, float, float]:
    minutes, seconds = divmod(round(abs(degrees) * 3600, 4), 60)
    whole, minutes = divmod(minutes, 60)
    return whole, minutes, round(seconds, 4)


def photo(
    path: Path,
    size: Size = (640, 480),
    seed: int = 0,
    *,
    image: Image.Image | None = None,
    exif: bytes = b"",
    icc_profile: bytes | None = None,
    quality: int = 88,
    progressive: bool = False,
) -> Path:
    """A JPEG file; of a scene, unless an image is given."""
    image = scene(size, seed) if image is None else image
    image.save(path, "JPEG", quality=quality, progressive=progressive, exif=exif, icc_profile=icc_profile)
    return path


def big_jpeg(path: Path, size: Size, seed: int = 0) -> Path:
    """A JPEG of very many pixels, drawn without holding more than a few of them: a strip of its rows, many times.

    The scan is cut into restart intervals of one row of blocks, which do not depend on each other.
    """
    width, height = size
    rows = scene((width, 16), seed).convert("L")
    out = io.BytesIO()
    rows.save(out, "JPEG", quality=80, restart_marker_rows=2)
    data = out.getvalue()
    at = data.index(b"\xff\xc0")
    scan = data.index(b"\xff\xda")
    body = scan + 2 + struct.unpack_from(">H", data, scan + 2)[0]
    head = bytearray(data[:body])
    struct.pack_into(">H", head, at + 5, height)
    dri = head.index(b"\xff\xdd")
    struct.pack_into(">H", head, dri + 4, -(-width // 8) * 2)
    strip = data[body:-2]
    with path.open("wb") as file:
        file.write(head)
        for number in range(-(-height // 16)):
            file.write((b"" if number == 0 else bytes([0xFF, 0xD0 + (number - 1) % 8])) + strip)
        file.write(b"\xff\xd9")
    return path


def every_format(folder: Path, image: Image.Image | None = None, only: tuple[str, ...] = ()) -> dict[str, Path]:
    """One picture in every format and in every way of keeping pixels that is read, by a name for it."""
    image = scene() if image is None else image
    grey = image.convert("L")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    see_through = image.copy()
    see_through.putalpha(Image.linear_gradient("L").resize(image.size))
    ways: dict[str, tuple[str, Callable[[Path], object]]] = {
        "JPEG": ("jpg", lambda p: image.save(p, quality=92)),
        "progressive JPEG": ("jpg", lambda p: image.save(p, quality=92, progressive=True)),
        "grey JPEG": ("jpg", lambda p: grey.save(p, quality=92)),
        "CMYK JPEG": ("jpg", lambda p: image.convert("CMYK").save(p, quality=92)),
        "PNG": ("png", lambda p: image.save(p)),
        "grey PNG": ("png", lambda p: grey.save(p)),
        "palette PNG": ("png", lambda p: image.quantize(64).save(p)),
        "alpha PNG": ("png", lambda p: see_through.save(p)),
        "grey alpha PNG": ("png", lambda p: see_through.convert("LA").save(p)),
        "16 bit PNG": ("png", lambda p: deep.save(p)),
        "1 bit PNG": ("png", lambda p: image.convert("1").save(p)),
        "APNG": ("png", lambda p: image.save(p, save_all=True, append_images=[Image.new("RGB", image.size)])),
        "WebP": ("webp", lambda p: image.save(p, quality=92)),
        "lossless WebP": ("webp", lambda p: see_through.save(p, lossless=True)),
        "animated WebP": ("webp", lambda p: image.save(p, save_all=True, append_images=[Image.new("RGB", image.size)])),
        "GIF": ("gif", lambda p: image.save(p)),
        "animated GIF": ("gif", lambda p: image.save(p, save_all=True, append_images=[Image.new("RGB", image.size)])),
        "TIFF": ("tif", lambda p: image.save(p)),
        "LZW TIFF": ("tiff", lambda p: image.save(p, compression="tiff_lzw")),
        "JPEG in TIFF": ("tif", lambda p: image.save(p, compression="jpeg", quality=92)),
        "CMYK TIFF": ("tif", lambda p: image.convert("CMYK").save(p)),
        "16 bit TIFF": ("tif", lambda p: deep.save(p)),
        "32 bit TIFF": ("tif", lambda p: deep.convert("I").save(p)),
        "float TIFF": ("tif", lambda p: Image.fromarray(np.asarray(grey, dtype=np.float32) / 255.0).save(p)),
        "BMP": ("bmp", lambda p: image.save(p)),
        "JPEG 2000": ("jp2", lambda p: image.save(p)),
        "JPEG 2000 codestream": ("j2k", lambda p: image.save(p)),
        "AVIF": ("avif", lambda p: image.save(p, quality=90)),
        "HEIC": ("heic", lambda p: heic(p, image)),
    }
    files = {}
    for name, (suffix, save) in ways.items():
        if only and name not in only:
            continue
        files[name] = folder / f"{name.replace(' ', '-')}.{suffix}"
        save(files[name])
    return files


def heic(path: Path, image: Image.Image | None = None, exif: bytes = b"") -> Path:
    """A HEIC file, by pillow-heif, which can write them; mmsearch itself needs only pi-heif."""
    import pillow_heif

    image = scene() if image is None else image
    pillow_heif.from_pillow(image).save(path, quality=90, **({"exif": exif} if exif else {}))
    return path


def big_heic(path: Path, tiles: Size, side: int = 1024) -> Path:
    """A HEIC of very many pixels, as telephones write it: a grid of tiles, here all of them the same one."""
    import pillow_heif

    out = io.BytesIO()
    pillow_heif.from_pillow(scene((side, side))).save(out, quality=20)
    one = out.getvalue()
    config = one.index(b"hvcC") - 4
    config_box = one[config : config + struct.unpack_from(">I", one, config)[0]]
    tile = one[one.index(b"mdat") + 4 :]
    count = tiles[0] * tiles[1]
    width, height = side * tiles[0], side * tiles[1]
    grid = struct.pack(">BBBBII", 0, 1, tiles[1] - 1, tiles[0] - 1, width, height)

    def box(name: bytes, *parts: bytes) -> bytes:
        return struct.pack(">I", 8 + sum(map(len, parts))) + name + b"".join(parts)

    def meta(start: int) -> bytes:
        infos = [
            box(b"infe", b"\2\0\0\0", struct.pack(">HH4sB", 1 + number, 0, b"hvc1" if number else b"grid", 0))
            for number in range(count + 1)
        ]
        places = [(start, len(grid)), *[(start + len(grid), len(tile))] * count]
        return box(
            b"meta",
            bytes(4),
            box(b"hdlr", bytes(8), b"pict", bytes(13)),
            box(b"pitm", bytes(4), struct.pack(">H", 1)),
            box(b"iinf", bytes(4), struct.pack(">H", count + 1), *infos),
            box(b"iref", bytes(4), box(b"dimg", struct.pack(f">HH{count}H", 1, count, *range(2, count + 2)))),
            box(
                b"iprp",
                box(
                    b"ipco",
                    config_box,
                    box(b"ispe", bytes(4), struct.pack(">II", side, side)),
                    box(b"ispe", bytes(4), struct.pack(">II", width, height)),
                ),
                box(
                    b"ipma",
                    bytes(4),
                    struct.pack(">IHBB", count + 1, 1, 1, 3),
                    *[struct.pack(">HBBB", 2 + number, 2, 0x81, 2) for number in range(count)],
                ),
            ),
            box(
                b"iloc",
                bytes(4),
                struct.pack(">BBH", 0x44, 0, count + 1),
                *[
                    struct.pack(">HHHII", 1 + number, 0, 1, offset, length)
                    for number, (offset, length) in enumerate(places)
                ],
            ),
        )

    ftyp = box(b"ftyp", b"heic", bytes(4), b"mif1heic")
    start = len(ftyp) + len(meta(0)) + 8
    path.write_bytes(ftyp + meta(start) + box(b"mdat", grid, tile))
    return path


def cmyk_jpeg_without_adobe(path: Path, image: Image.Image) -> Path:
    """CMYK that is not inverted, in a JPEG without Adobe's marker, as some prepress programs write it."""
    out = io.BytesIO()
    ImageChops.invert(image.convert("CMYK")).save(out, "JPEG", quality=95)  # which inverts it again
    data = out.getvalue()
    at = data.index(b"\xff\xee")
    path.write_bytes(data[:at] + data[at + 2 + struct.unpack_from(">H", data, at + 2)[0] :])
    return path


def linear_light_profile() -> bytes:
    """An ICC profile that looks far from sRGB: the same primaries, in linear light.

    Pillow can make no such profile, so the tone curves of its sRGB profile are replaced.
    """
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = struct.unpack_from(">I", profile, 128)[0]
    for entry in range(132, 132 + 12 * count, 12):
        name, start, _ = struct.unpack_from(">4sII", profile, entry)
        if name in (b"rTRC", b"gTRC", b"bTRC"):
            struct.pack_into(">4sIHHi", profile, start, b"para", 0, 0, 0, 1 << 16)  # y = x ** 1.0
    return bytes(profile)


# Files that are not what they seem


def broken_cut_short(path: Path, whole: Path, keep: float = 0.5) -> Path:
    """The first part of a file."""
    data = whole.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    return path


def broken_in_the_middle(path: Path, whole: Path) -> Path:
    """A file of the right length, with 64 bytes of its middle overwritten."""
    data = bytearray(whole.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 64] = b"\xff" * 64
    path.write_bytes(data)
    return path


def broken_empty(path: Path) -> Path:
    """Zero bytes."""
    path.write_bytes(b"")
    return path


def broken_text(path: Path, text: str = "Dear diary, this is not a picture. Ünïcode.\n") -> Path:
    """Text in a file with any suffix."""
    path.write_text(text, encoding="utf-8")
    return path


def png(size: Size, colour_type: int, bits: int, scanlines: bytes, before: bytes = b"") -> bytes:
    """A PNG file by hand: `scanlines` are the raw rows, each with its filter byte; `before` are chunks before them."""
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", *size, bits, colour_type, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + before + _chunk(b"IDAT", zlib.compress(scanlines)) + _chunk(b"IEND", b"")


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_bomb(path: Path, size: Size = (50_000, 50_000), colour_type: int = 0) -> Path:
    """A PNG of a few kilobytes that says it has as many pixels as given; colour_type 0 is grey, 2 RGB, 6 RGBA."""
    path.write_bytes(png(size, colour_type, 8, bytes(2**21)))
    return path


def blank_png(path: Path, size: Size) -> Path:
    """A grey PNG of very many pixels that is whole, and small on disk."""
    path.write_bytes(png(size, 0, 8, bytes((size[0] + 1) * size[1])))
    return path


def gif_with_many_frames(path: Path, n_frames: int = 1_000_000) -> Path:
    """A GIF of 8 x 8 pixels whose second frame is there a great many times."""
    out = io.BytesIO()
    quadrants((8, 8)).save(out, "GIF", save_all=True, append_images=[Image.new("RGB", (8, 8), (0, 0, 0))])
    data = out.getvalue()
    second = data.rindex(b"\x21\xf9\x04")  # the graphic control extension that opens the last frame
    with path.open("wb") as file:
        file.write(data[:second])
        frames = data[second:-1] * 1000
        for _ in range(n_frames // 1000):
            file.write(frames)
        file.write(b";")
    return path


def apng_with_many_frames(path: Path, n_frames: int = 200_000) -> Path:
    """An APNG of 8 x 8 pixels with a great many frames after its first."""
    rows = zlib.compress(b"".join(b"\0" + bytes(range(8)) for _ in range(8)))
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0)) + _chunk(
        b"acTL", struct.pack(">II", n_frames, 0)
    )
    control = struct.pack(">IIIIHHBB", 8, 8, 0, 0, 1, 10, 0, 0)
    with path.open("wb") as file:
        file.write(
            b"\x89PNG\r\n\x1a\n" + head + _chunk(b"fcTL", struct.pack(">I", 0) + control) + _chunk(b"IDAT", rows)
        )
        for number in range(1, n_frames):
            sequence = struct.pack(">I", 2 * number - 1)
            file.write(_chunk(b"fcTL", sequence + control) + _chunk(b"fdAT", struct.pack(">I", 2 * number) + rows))
        file.write(_chunk(b"IEND", b""))
    return path
