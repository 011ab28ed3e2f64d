"""Paths as two SQLite columns: TEXT that people and tools can read, and the exact bytes where that is not all.

File names on Linux are bytes. Python carries those that are not UTF-8 as lone surrogates, which SQLite's TEXT cannot
hold; such a path is stored readable (`caf\\udce9.jpg`) with its bytes beside it, so that it is found, opened and
removed exactly.
"""

import os

PathColumns = tuple[str, bytes | None]


def to_columns(path: str) -> PathColumns:
    """path -> (readable text, exact bytes or None where the text says it all)."""
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return readable(path), os.fsencode(path)
    return path, None


def from_columns(text: str, path_bytes: bytes | None) -> str:
    """Back to the path that the operating system knows."""
    return text if path_bytes is None else os.fsdecode(path_bytes)


def readable(path: str) -> str:
    """The path with undecodable bytes spelt out; prefixes stay prefixes."""
    return path.encode("utf-8", "backslashreplace").decode("utf-8")


def below(folder: str) -> tuple[str, str]:
    """Half-open range of readable paths that lie below a folder, for an index range scan."""
    prefix = readable(folder).rstrip(os.sep) + os.sep
    return prefix, prefix[:-1] + chr(ord(os.sep) + 1)
