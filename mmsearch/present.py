"""Answers on paper: hits as a table, as JSON, as bare paths; and the one table that every command prints.

Names and captions come from strangers. What could move the cursor, hide text or turn its direction is shown escaped
(`printable`), never sent to a terminal. Written plainly instead of with rich, whose import alone takes longer than a
search (0.1 s).
"""

import json
import math
import os
import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmsearch.search import Hit

if TYPE_CHECKING:
    from mmsearch.duplicates import Copy, Group
    from mmsearch.index import Status

TEXT_COLUMNS_MIN = 24  # what a long path has to leave to the text before it

# Control characters, marks that turn the direction of text or cannot be seen, and halves of surrogate pairs.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]"
)


def printable(text: str) -> str:
    """The text with everything that a terminal might obey, or that cannot be encoded, as a visible escape."""
    return text if text.isprintable() else _UNSAFE.sub(_visible, text)


def _visible(match: re.Match[str]) -> str:
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a file name that is not UTF-8, as os.fsdecode keeps it
        code -= 0xDC00
    named = {0x09: r"\t", 0x0A: r"\n", 0x0D: r"\r"}
    return named.get(code) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")


def one_line(text: str) -> str:
    """A passage or caption on one line, safe to print."""
    return printable(" ".join(text.split()))


def file_url(path: str) -> str:
    """The file:// address of an absolute path, its bytes percent-encoded."""
    return Path(path).as_uri()


def obeys(environment: Mapping[str, str], is_terminal: bool) -> bool:
    """Whether a stream is a terminal that understands escape sequences."""
    return is_terminal and environment.get("TERM", "dumb") not in ("", "dumb", "unknown")


# How xargs reads a line: words between blanks, which quotes and backslashes keep together
_XARGS_TOKEN = re.compile(r"""'[^']*'|"[^"]*"|\\.|[^\\]""", re.DOTALL)
_XARGS_PART = re.compile(r"""(?:'[^']*'|"[^"]*"|\\.|[^\s\\])+""", re.DOTALL)


# ---- tables


def table(
    headers: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    right: Collection[int] = (),
    shrink: int | None = None,
    width: int | None = None,
    links: Sequence[str | None] = (),
) -> str:
    """Rows in columns, two blanks between them; None is an empty cell. Ends without a newline.

    right: the columns of numbers, flush right. shrink: the column that is cut with … where a row would be wider than
    `width` terminal columns; no other ever is. links: for each row, where a click on its last cell leads (OSC 8).
    """
    cells = [[printable(header) for header in headers]]
    cells += [["" if cell is None else printable(str(cell)) for cell in row] for row in rows]
    widths = [max(map(columns_of, column)) for column in zip(*cells, strict=True)]
    if shrink is not None and width is not None:
        others = sum(widths) - widths[shrink] + 2 * (len(widths) - 1)
        widths[shrink] = max(min(widths[shrink], width - others), min(widths[shrink], TEXT_COLUMNS_MIN))
    targets = [None, *links] if links else [None] * len(cells)
    lines = []
    for row, target in zip(cells, targets, strict=True):
        padded = [_padded(cell, widths[at], at in right) for at, cell in enumerate(row)]
        last = padded.pop().rstrip() if len(row) - 1 not in right else padded.pop()
        line = "  ".join([*padded, _linked(last, target)])
        lines.append(line.rstrip())
    return "\n".join(lines)


def columns_of(text: str) -> int:
    """How many terminal columns a printable text takes: two for a Chinese letter or an emoji, none for an accent."""
    if text.isascii():
        return len(text)
    return sum(_columns_of_letter(letter) for letter in text)


def _columns_of_letter(letter: str) -> int:
    if unicodedata.category(letter) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1


def _padded(text: str, width: int, flush_right: bool) -> str:
    blanks = width - columns_of(text)
    if blanks < 0:
        text, blanks = _cut(text, width)
    return " " * blanks + text if flush_right else text + " " * blanks


def _cut(text: str, width: int) -> tuple[str, int]:
    """The beginning of a text that is too wide, with an ellipsis; and how many columns are left over."""
    left, end = width - 1, 0
    for letter in text:
        left -= _columns_of_letter(letter)
        if left < 0:
            left += _columns_of_letter(letter)
            break
        end += 1
    return text[:end] + "…", left


def _linked(text: str, target: str | None) -> str:
    # https://gist.github.com/egmontkob/eb114294efbcd5adb1944c9f3cb5feda; the address is percent-encoded, so plain ASCII
    return f"\x1b]8;;{target}\x1b\\{text}\x1b]8;;\x1b\\" if target else text


# ---- hits


def hits_table(hits: Sequence[Hit], *, hyperlinks: bool, width: int) -> str:
    """Hits for a person: score, kind, which rankings found it at which rank, its text, and last its path, never cut.

    hyperlinks: whether stdout is a terminal, so that paths can be clicked. An item that has no path shows its id.
    """
    rows = [
        (
            hit.rank,
            f"{hit.score:.3f}",
            hit.kind,
            _found_by(hit),
            _text(hit),
            hit.path if hit.path is not None else hit.id,
        )
        for hit in hits
    ]
    links = [file_url(hit.path) if hyperlinks and hit.path is not None else None for hit in hits]
    headers = ("", "score", "kind", "found by", "text", "path")
    return table(headers, rows, right=(0, 1), shrink=4, width=width, links=links)


def _found_by(hit: Hit) -> str:
    ranks = sorted(hit.found_by.items(), key=lambda item: item[1])
    return ", ".join(f"{ranking} {rank}" for ranking, rank in ranks)


def _text(hit: Hit) -> str:
    text = one_line(hit.text or "")
    return text if hit.line is None else f"line {hit.line}: {text}"


def hits_json(hits: Sequence[Hit]) -> str:
    """Hits as a JSON array of objects, for programs; the keys and their order are a promise.

    A byte of a path that is not UTF-8 is written as the escape \\udc80 to \\udcff, from which
    `os.fsencode(json.loads(...)[0]["path"])` makes the very bytes. Everything else that is readable stays so.
    """
    return _json([hit_object(hit) for hit in hits])


def hit_object(hit: Hit) -> dict[str, Any]:
    """What JSON says of a hit."""
    return {
        "rank": hit.rank,
        "score": _number(hit.score),
        "kind": hit.kind,
        "id": hit.id,
        "path": hit.path,
        "text": hit.text,
        "line": hit.line,
        "width": hit.width,
        "height": hit.height,
        "format": hit.format,
        "taken_at": hit.taken_at,
        "camera": hit.camera,
        "latitude_deg": finite(hit.latitude_deg),
        "longitude_deg": finite(hit.longitude_deg),
        "facts": finite(hit.facts),
        "found_by": dict(hit.found_by),
    }


def groups_json(groups: "Sequence[Group]") -> str:
    """Duplicates as a JSON array of groups."""
    return _json([group_object(group) for group in groups])


def group_object(group: "Group") -> dict[str, Any]:
    """A group of duplicates as JSON has it."""
    return {"spare_bytes": group.spare_bytes, "copies": [_copy_object(copy) for copy in group.copies]}


def _copy_object(copy: "Copy") -> dict[str, Any]:
    return {
        "id": copy.id,
        "path": copy.path,
        "width": copy.width,
        "height": copy.height,
        "size_bytes": copy.size_bytes,
        "likeness": copy.likeness,
        "is_exact": copy.is_exact,
        "frees_bytes": copy.frees_bytes,
    }


def status_object(status: "Status") -> dict[str, Any]:
    """What JSON says of an index."""
    skipped = [{"path": file.path, "reason": file.skipped} for file in status.skipped]
    return asdict(status) | {"roots": list(status.roots), "skipped": skipped}


def _number(score: float) -> float | None:
    return round(float(score), 6) if math.isfinite(score) else None


def finite(value: Any) -> Any:
    """The value with None for NaN and infinity, which JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return value


def _json(value: Any) -> str:
    readable = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=2)
    return _UNSAFE.sub(lambda match: match[0] if match[0] == "\n" else f"\\u{ord(match[0]):04x}", readable)


def groups_table(groups: "Sequence[Group]", *, hyperlinks: bool, width: int) -> str:
    """Duplicates as a table, a number for each group; the first of a group is what the others are like."""
    copies = [
        (number, place, copy) for number, group in enumerate(groups, 1) for place, copy in enumerate(group.copies)
    ]
    rows = [
        (
            "" if place else number,
            "same bytes" if place and copy.is_exact else f"{copy.likeness:.3f}" if place else "",
            f"{copy.width} x {copy.height}" if copy.width else "",
            "" if copy.size_bytes is None else f"{copy.size_bytes / 1e6:,.2f} MB",
            copy.path if copy.path is not None else copy.id,
        )
        for number, place, copy in copies
    ]
    links = [file_url(copy.path) if hyperlinks and copy.path is not None else None for _, _, copy in copies]
    return table(("", "likeness", "pixels", "file", "path"), rows, right=(0, 2, 3), width=width, links=links)


def spare_paths(groups: "Sequence[Group]") -> list[str]:
    """The paths of all copies but the first of each group."""
    return [copy.path for group in groups for copy in group.copies[1:] if copy.path is not None]


def hits_paths(hits: Sequence[Hit], *, nul: bool) -> bytes:
    """The paths of the hits, best first, each once, as `path_list` writes them. Items without a path are left out."""
    return path_list(dict.fromkeys(hit.path for hit in hits if hit.path is not None), nul=nul)


def path_list(paths: Iterable[str], *, nul: bool) -> bytes:
    """Paths in the very bytes of the file system, for xargs. nul: each ends with a NUL byte, not with a newline."""
    end = b"\0" if nul else b"\n"
    return b"".join(os.fsencode(path) + end for path in paths)


def is_safe_in_lines(path: str) -> bool:
    """Whether `xargs rm`, which splits lines at blanks and takes quotes away, can do no harm to anything but the path.

    Never where the path holds a newline. With a blank, `my pictures/a.jpg` would be `my` and `pictures/a.jpg`: safe
    where neither is there, and neither reads as an option.
    """
    if "\n" in path:
        return False
    parts = ["".join(map(_unquoted, part)) for part in map(_XARGS_TOKEN.findall, _XARGS_PART.findall(path))]
    return parts == [path] or not any(part.startswith("-") or os.path.lexists(part) for part in parts if part)


def _unquoted(token: str) -> str:
    return token[1:] if token.startswith("\\") else token[1:-1] if token[0] in "'\"" and len(token) > 1 else token
