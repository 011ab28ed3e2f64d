"""Pictures in the terminal, by whichever of four ways it knows.

Own code, because the libraries that one would expect cost more than they give: term-image holds Pillow below 11 and
brings requests, textual-image brings rich, does not speak iTerm2's protocol and asks the terminal questions when it is
imported. Here the terminal is known by its environment, never by asking: an answer that comes late would be typed into
the shell.

kitty   https://sw.kovidgoyal.net/kitty/graphics-protocol/
iterm2  https://iterm2.com/documentation-images.html
sixel   https://vt100.net/docs/vt3xx-gp/chapter14.html
blocks  the upper half block in 24-bit colours, two pixels a cell; any terminal of today
"""

import io
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

Protocol = Literal["kitty", "iterm2", "sixel", "blocks"]

CELL_PIXELS = (10, 20)  # width and height of a cell, where the terminal does not tell; most fonts are close to 1:2
KITTY_CHUNK = 4096  # the protocol's own limit

_KITTY_PROGRAMS = {"kitty", "ghostty", "warpterminal"}
_ITERM2_PROGRAMS = {"iterm.app", "wezterm", "mintty"}
_SIXEL_TERMS = ("foot", "mlterm", "contour", "yaft", "xterm-sixel")


def detect(environment: Mapping[str, str], is_terminal: bool) -> Protocol | None:
    """How pictures can be shown, or None where they cannot: no terminal, or one without any control."""
    term = environment.get("TERM", "")
    program = environment.get("TERM_PROGRAM", "").lower()
    if not is_terminal or term == "dumb":
        return None
    if environment.get("TMUX") or environment.get("STY") or term.startswith(("screen", "tmux")):
        return "blocks"  # they keep graphics from the terminal behind them
    konsole = environment.get("KONSOLE_VERSION", "")
    if (
        program in _KITTY_PROGRAMS
        or "KITTY_WINDOW_ID" in environment
        or term in ("xterm-kitty", "xterm-ghostty")
        or (konsole.isdecimal() and int(konsole) >= 220400)
    ):
        return "kitty"
    if program in _ITERM2_PROGRAMS or environment.get("LC_TERMINAL") == "iTerm2":
        return "iterm2"
    if term.startswith(_SIXEL_TERMS):
        return "sixel"
    return "blocks"


def cell_pixels(terminal: int) -> tuple[int, int]:
    """Width and height of a character cell, in pixels, as the terminal behind a file descriptor tells."""
    try:
        import fcntl
        import struct
        import termios

        answer = fcntl.ioctl(terminal, termios.TIOCGWINSZ, bytes(8))
    except (ImportError, OSError):  # Windows; or no terminal
        return CELL_PIXELS
    rows, columns, width, height = struct.unpack("HHHH", answer)
    return (width // columns, height // rows) if width and height and rows and columns else CELL_PIXELS


def preview(
    picture: Image.Image | bytes,
    protocol: Protocol,
    *,
    columns: int,
    rows: int,
    cell: tuple[int, int] = CELL_PIXELS,
) -> str:
    """What to print so that the picture appears, at most columns x rows cells large; ends with a newline.

    picture: RGB, or the bytes of a thumbnail. cell: width and height of a cell in pixels (`cell_pixels`).
    """
    image = Image.open(io.BytesIO(picture)) if isinstance(picture, bytes) else picture
    across, down = _cells(image.size, max(columns, 1), max(rows, 1), cell)
    return _DRAW[protocol](image.convert("RGB"), across, down, cell)


def _cells(size: tuple[int, int], columns: int, rows: int, cell: tuple[int, int]) -> tuple[int, int]:
    """The largest whole number of cells in which a picture fits without being stretched."""
    width, height = size[0] / cell[0], size[1] / cell[1]
    scale = min(columns / width, rows / height)
    return max(round(width * scale), 1), max(round(height * scale), 1)


def _resized(image: Image.Image, width: int, height: int) -> Image.Image:
    return image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=2.0)


def _kitty(image: Image.Image, columns: int, rows: int, cell: tuple[int, int]) -> str:
    data = _encoded(_resized(image, columns * cell[0], rows * cell[1]), "PNG")
    chunks = [data[at : at + KITTY_CHUNK] for at in range(0, len(data), KITTY_CHUNK)]
    commands = []
    for number, chunk in enumerate(chunks):
        keys = f"a=T,f=100,q=2,c={columns},r={rows}," if number == 0 else ""  # q=2: no answers into the shell
        commands.append(f"\x1b_G{keys}m={int(number < len(chunks) - 1)};{chunk}\x1b\\")
    return "".join(commands) + "\n"


def _iterm2(image: Image.Image, columns: int, rows: int, cell: tuple[int, int]) -> str:
    data = _encoded(_resized(image, columns * cell[0], rows * cell[1]), "JPEG")
    keys = f"inline=1;size={len(data) * 3 // 4 - data.count('=')};width={columns};height={rows}"
    return f"\x1b]1337;File={keys};preserveAspectRatio=1:{data}\x07\n"


def _encoded(image: Image.Image, format_: str) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format_)
    return b64encode(buffer.getvalue()).decode("ascii")


def _sixel(image: Image.Image, columns: int, rows: int, cell: tuple[int, int]) -> str:
    image = _resized(image, columns * cell[0], rows * cell[1])
    quantized = image.quantize(256, Image.Quantize.MEDIANCUT)
    colours = np.asarray(quantized.getpalette("RGB"), np.uint8).reshape(-1, 3)  # (n, 3)
    indices = np.asarray(quantized)  # (height, width) uint8
    palette = "".join(
        f"#{number};2;{red};{green};{blue}"  # in per cent
        for number, (red, green, blue) in enumerate(np.rint(colours * (100 / 255)).astype(int).tolist())
    )
    height, width = indices.shape
    bands = "-".join("$".join(_sixel_band(indices[top : top + 6])) for top in range(0, height, 6))
    return f'\x1bPq"1;1;{width};{height}{palette}{bands}\x1b\\\n'


def _sixel_band(band: npt.NDArray[np.uint8]) -> Iterator[str]:
    """Six rows, colour by colour: each column is one letter, its six bits the pixels from the top down."""
    weights = (1 << np.arange(len(band), dtype=np.uint8))[:, None]  # (6, 1)
    for colour in np.unique(band).tolist():
        sixels = ((band == colour) * weights).sum(axis=0, dtype=np.uint8)  # (width,)
        starts = np.flatnonzero(np.diff(sixels.astype(np.int16), prepend=-1))
        lengths = np.diff(np.append(starts, len(sixels)))
        runs = zip(sixels[starts].tolist(), lengths.tolist(), strict=True)
        yield f"#{colour}" + "".join(_run(chr(63 + sixel), length) for sixel, length in runs)


def _run(letter: str, length: int) -> str:
    return letter * length if length < 4 else f"!{length}{letter}"


def _blocks(image: Image.Image, columns: int, rows: int, cell: tuple[int, int]) -> str:
    pixels = np.asarray(_resized(image, columns, 2 * rows))  # (2 * rows, columns, 3) uint8
    lines = []
    for top, bottom in zip(pixels[0::2].tolist(), pixels[1::2].tolist(), strict=True):
        cells = (
            f"\x1b[38;2;{upper[0]};{upper[1]};{upper[2]};48;2;{lower[0]};{lower[1]};{lower[2]}m▀"
            for upper, lower in zip(top, bottom, strict=True)
        )
        lines.append("".join(cells) + "\x1b[0m\n")
    return "".join(lines)


_DRAW: dict[Protocol, Callable[[Image.Image, int, int, tuple[int, int]], str]] = {
    "kitty": _kitty,
    "iterm2": _iterm2,
    "sixel": _sixel,
    "blocks": _blocks,
}
