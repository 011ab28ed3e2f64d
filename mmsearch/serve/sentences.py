"""What is wrong with a part of a request, as a plain sentence in place of the validator's own words."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mmsearch.present import printable

SHOWN_LETTERS = 60  # of a name that the client made up

# What a field takes, where a pattern says so
TAKES = {
    "after": "takes a date as 2023, 2023-07 or 2023-07-14",
    "before": "takes a date as 2023, 2023-07 or 2023-07-14",
    "near": "takes a latitude, a longitude and a distance in km, as 48.86,2.35,25",
    "cursor": "takes the cursor of the page before, as it came",
}
# What else a validator finds, by its name for it
WRONG = {
    "missing": "is missing",
    "extra_forbidden": "is not known here",
    "string_too_short": "is empty",
    "string_unicode": "is not UTF-8",
    "finite_number": "takes a finite number",
    "none_required": "is null or left out",
}
KINDS = {
    "string": "takes text",
    "int": "takes a whole number",
    "float": "takes a number",
    "bool": "takes true or false",
    "list": "takes a list",
    "tuple": "takes a list",
    "dict": "takes a JSON object",
    "model": "takes a JSON object",
}


def sentence(error: Mapping[str, Any]) -> str:
    """One of pydantic's errors, with its context, as a sentence."""
    kind, limits = error["type"], error.get("ctx") or {}
    if kind == "json_invalid":
        return _not_json(error["msg"])
    location = _location(error["loc"])
    where = ".".join(map(str, location))
    subject = f"'{_short(where)}'" if where else "The body"
    field = next((part for part in reversed(location) if isinstance(part, str)), "")
    return f"{subject} {_what(kind, limits, field)}."


def _location(parts: Sequence[Any]) -> Sequence[Any]:
    """Where in the request, without the part of it; a field of a JSON body may be called `query` itself."""
    is_part = parts[:1] == ("body",) or (len(parts) > 1 and parts[0] in ("query", "path"))
    return parts[1:] if is_part else parts


def sentences(errors: Sequence[Mapping[str, Any]]) -> list[str]:
    """One for each part of the request that is wrong."""
    found: dict[tuple[Any, ...], str] = {}
    for error in errors:
        found.setdefault(tuple(error["loc"]), sentence(error))
    return list(dict.fromkeys(found.values()))


def _what(kind: str, limits: Mapping[str, Any], field: str) -> str:
    if kind in WRONG:
        return WRONG[kind]
    if field in TAKES and kind not in ("too_long", "too_short"):
        return TAKES[field]
    if kind == "literal_error":
        return f"is {limits['expected']}"
    if kind in ("greater_than_equal", "greater_than"):
        return f"is {limits['ge']} at the least" if "ge" in limits else f"is above {limits['gt']}"
    if kind in ("less_than_equal", "less_than"):
        return f"is {limits['le']} at the most" if "le" in limits else f"is below {limits['lt']}"
    if kind == "string_too_long":
        return f"has {limits['max_length']:,} letters at the most"
    if kind == "too_long":
        return f"has {limits['max_length']:,} parts at the most"
    if kind == "too_short":
        return f"has {limits['min_length']:,} parts at the least" if limits["min_length"] > 1 else "is empty"
    return KINDS.get(kind.partition("_")[0], "cannot be used as it is")


def _not_json(message: str) -> str:
    """With the place, which the parser names at the end of its message."""
    if "recursion" in message:
        return "The body is JSON that is nested too deeply."
    place = re.search(r"line (\d+) column (\d+)", message)
    return f"The body is not JSON (line {place[1]}, column {place[2]})." if place else "The body is not JSON."


def _short(name: str) -> str:
    name = printable(name)
    return name if len(name) <= SHOWN_LETTERS else name[: SHOWN_LETTERS - 1] + "…"
