"""stdin, stdout and stderr as the command line needs them, whatever a shell has made of them."""

import codecs
import io
import os
import sys

ESCAPES = "mmsearch.escapes"


def set_up() -> None:
    """Open what is closed, and let no stream stop the work by what it cannot spell; stderr by nothing at all."""
    codecs.register_error(ESCAPES, _escaped)
    _open_missing()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=ESCAPES)
    if isinstance(sys.stderr, io.TextIOWrapper):
        raw = _Heedless(sys.stderr.fileno(), "wb", closefd=False)
        sys.stderr = io.TextIOWrapper(
            io.BufferedWriter(raw), sys.stderr.encoding, ESCAPES, line_buffering=True, write_through=True
        )


class _Heedless(io.FileIO):
    """A file that takes what it cannot write: an index is not left half done because nobody reads the notes."""

    def write(self, data: bytes) -> int:  # type: ignore[override]
        try:
            return super().write(data)
        except OSError:
            return len(data)


def _open_missing() -> None:
    """Give closed streams the null device, so that no file of the index gets their numbers.

    Nothing can be read from stdin then, and nothing be written to stdout: both fail. So does stdopen of GNU's gnulib.
    """
    for number, name, mode, access in (
        (0, "stdin", "r", os.O_WRONLY),
        (1, "stdout", "w", os.O_RDONLY),
        (2, "stderr", "w", os.O_WRONLY),
    ):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, access)
            os.dup2(opened, number)
            if opened != number:
                os.close(opened)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115


def _escaped(error: UnicodeError) -> tuple[str, int]:
    r"""Letters that an encoding lacks as \uXXXX, of an emoji two: JSON stays JSON."""
    assert isinstance(error, UnicodeEncodeError)
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2)), error.end
