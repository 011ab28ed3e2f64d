"""What a caller may hand over, checked where it comes in: one sentence for whoever hands over something else.

A check takes a value that may be anything and gives it in the form in which it is used; an iterator becomes a list, a
number of numpy's a number, a path a string. Raises UsageError, which names the argument and never prints what may be
megabytes.
"""

import contextlib
import functools
import inspect
import io
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import date
from numbers import Integral, Real
from typing import Any, ParamSpec, TypeAlias, TypeVar

import numpy as np

from mmsearch.errors import UsageError

P = ParamSpec("P")
R = TypeVar("R")
Check: TypeAlias = Callable[[str, Any], Any]  # the argument's name, its value -> the value as it is used

LONGEST_PATH = 32_767 if os.name == "nt" else 4_096
SHOWN = 60  # letters of a value


def checked(**checks: Check) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Check arguments by their names before a function is called; a default is not checked."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)
        assert checks.keys() <= signature.parameters.keys()

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                bound = signature.bind(*args, **kwargs)
            except TypeError:
                return function(*args, **kwargs)  # which says better what is missing
            for name, value in bound.arguments.items():
                if name in checks and value is not signature.parameters[name].default:
                    bound.arguments[name] = checks[name](name, value)
            return function(*bound.args, **bound.kwargs)

        return call

    return decorate


def shown(value: object) -> str:
    """A value in an error message: itself where it is short, else what it is."""
    if isinstance(value, str):
        return repr(value if len(value) <= SHOWN else value[:SHOWN] + "…")
    if value is None or (isinstance(value, bool | int | float) and abs(value) < 1e15):
        return repr(value)
    name = type(value).__name__[:SHOWN]
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def optional(check: Check) -> Check:
    """None, or what another check lets pass."""
    return lambda name, value: None if value is None else check(name, value)


def text(name: str, value: Any) -> str:
    """A string."""
    if not isinstance(value, str):
        raise UsageError(f"{name} is a string, not {shown(value)}.")
    return str(value)


def each(name: str, value: Any, what: str) -> Iterator[Any]:
    """Whatever can be gone through but is one thing: no string, no bytes, no file, no mapping."""
    if not isinstance(value, str | bytes | bytearray | memoryview | Mapping | type | io.IOBase):
        with contextlib.suppress(TypeError):  # of what cannot; an array without dimensions
            return iter(value)
    raise UsageError(f"{name} is a list of {what}, not {shown(value)}.")


def several(name: str, value: Any, what: str) -> list[Any]:
    """The same as a list."""
    return list(each(name, value, what))


def spelled(name: str, value: Any) -> str:
    """A string that can be sent."""
    found = text(name, value)
    try:
        found.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{name} is a string that UTF-8 can write.") from None
    return found


def texts(name: str, value: Any) -> list[str]:
    """A list of strings."""
    return [_one(name, one, "strings", isinstance(one, str)) for one in several(name, value, "strings")]


def texts_or_none(name: str, value: Any) -> list[str | None]:
    """A list of strings, some of which may be missing."""
    return [_one(name, one, "strings", one is None or isinstance(one, str)) for one in several(name, value, "strings")]


def _one(name: str, value: Any, what: str, right: bool) -> Any:
    if not right:
        raise UsageError(f"{name} is a list of {what}; one of them is {shown(value)}.")
    return value


def path(name: str, value: Any) -> str:
    """A path, as a string; never an empty one."""
    found = name_or_path(name, value)
    if not found:
        raise UsageError(f"{name} is an empty path. Name a file or folder; the current one is '.'.")
    return found


def name_or_path(name: str, value: Any) -> str:
    """A path, or a name that may stand for one, as a string."""
    if isinstance(value, str | bytes | os.PathLike) and not isinstance(value, type):
        try:
            found = os.fsdecode(os.fspath(value))
        except TypeError:
            pass
        else:
            with contextlib.suppress(UnicodeEncodeError):
                if b"\0" not in os.fsencode(found):
                    return _short_enough(name, found)
            raise UsageError(f"{name} is a path, and none has such letters in it.")
    raise UsageError(f"{name} is a path, not {shown(value)}.")


def _short_enough(name: str, found: str) -> str:
    if len(found) > LONGEST_PATH:
        raise UsageError(f"{name} is a path, and none has {len(found):,} letters.")
    return found


def paths(name: str, value: Any) -> list[str]:
    """A path, or a list of paths."""
    if isinstance(value, str | bytes | os.PathLike) and not isinstance(value, type):
        return [path(name, value)]
    return [path(name, one) for one in several(name, value, "paths")]


def whole(name: str, value: Any) -> int:
    """A whole number."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise UsageError(f"{name} is a whole number, not {shown(value)}.")
    return int(value)


def count(name: str, value: Any) -> int:
    """How many hits to give."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise UsageError(f"{name} is how many to give, a whole number of 1 or more, not {shown(value)}.")
    return int(value)


def number(name: str, value: Any) -> float:
    """A number, and not NaN."""
    if not isinstance(value, Real) or isinstance(value, bool):
        raise UsageError(f"{name} is a number, not {shown(value)}.")
    try:
        found = float(value)
    except OverflowError:
        found = math.nan
    if math.isnan(found):
        raise UsageError(f"{name} is a number, not {shown(value)}.")
    return found


def seconds(name: str, value: Any) -> float:
    """A number of seconds."""
    found = number(name, value)
    if found < 0:
        raise UsageError(f"{name} is a number of seconds, 0 or more, not {shown(value)}.")
    return found


def truth(name: str, value: Any) -> bool:
    """True or False."""
    if not isinstance(value, bool | np.bool_):
        raise UsageError(f"{name} is True or False, not {shown(value)}.")
    return bool(value)


def day(name: str, value: Any) -> str:
    """A year, month or day as text; of a date or a moment its day. What the text says is checked where it is read."""
    if isinstance(value, date | np.datetime64):
        return (value.isoformat() if isinstance(value, date) else str(value))[:10]
    if not isinstance(value, str):
        raise UsageError(f"{name} takes a date as 2023, 2023-07 or 2023-07-14, not {shown(value)}.")
    return str(value)


def near(name: str, value: Any) -> tuple[float, ...]:
    """Latitude, longitude and a distance."""
    says = f"{name} takes three numbers: latitude, longitude and a distance in km."
    try:
        found = tuple(number(name, one) for one in each(name, value, "numbers"))
    except UsageError:
        raise UsageError(says) from None
    if len(found) != 3:
        raise UsageError(says)
    return found


def mapping(name: str, value: Any) -> dict[str, Any]:
    """A mapping from strings."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise UsageError(f"{name} is a mapping with strings as keys, not {shown(value)}.")
    return dict(value)


def mappings(name: str, value: Any) -> list[Mapping[str, Any]]:
    """A list of mappings from strings."""
    return [mapping(f"each of {name}", one) for one in several(name, value, "mappings")]


def function(name: str, value: Any) -> Any:
    """Something that can be called."""
    if not callable(value):
        raise UsageError(f"{name} is a function, not {shown(value)}.")
    return value


def one_of(*names: str) -> Check:
    """One of some strings."""

    def check(name: str, value: Any) -> str:
        if not isinstance(value, str) or value not in names:
            raise UsageError(f"{name} is {' or '.join(names)}, not {shown(value)}.")
        return str(value)

    return check


def instance(module: str, kind: str) -> Check:
    """Of a class, by its name and its module, which may not be imported yet: then nothing is of it."""

    def check(name: str, value: Any) -> Any:
        known = getattr(sys.modules.get(module), kind, None)
        if known is None or not isinstance(value, known):
            raise UsageError(f"{name} is a {module}.{kind}, not {shown(value)}.")
        return value

    return check


def image(name: str, value: Any) -> Any:
    """A PIL image, or an array of pixels, which becomes one."""
    pillow = sys.modules.get("PIL.Image")  # imported by whoever made such an image
    if pillow is not None and isinstance(value, pillow.Image):
        return value
    if not isinstance(value, np.ndarray):
        raise UsageError(f"{name} is a PIL image or an array of uint8, not {shown(value)}.")
    is_grey, is_colour = value.ndim == 2, value.ndim == 3 and value.shape[2] in (3, 4)
    if value.dtype != np.uint8 or not (is_grey or is_colour) or 0 in value.shape:
        raise UsageError(
            f"{name} as an array has the shape (height, width, 3) or (height, width) and the type uint8; this one has "
            f"{str(value.shape)[:SHOWN]} and {str(value.dtype)[:SHOWN]}."
        )
    from PIL import Image  # here: a search by words has no use for it

    return Image.fromarray(np.ascontiguousarray(value))


def each_image(name: str, value: Any) -> list[Any]:
    """A list of PIL images or arrays of pixels."""
    if isinstance(value, np.ndarray) and value.ndim not in (1, 4):  # one image, and no list
        raise UsageError(f"{name} is a list; for one array, give [array].")
    return [image(f"each of {name}", one) for one in several(name, value, "PIL images")]


def array(name: str, value: Any, dtype: type[np.generic], dimensions: int) -> np.ndarray[Any, Any]:
    """An array of numbers of a kind, with so many dimensions."""
    if not isinstance(value, np.ndarray) or value.ndim != dimensions or not np.issubdtype(value.dtype, dtype):
        what = f"{value.ndim} of {value.dtype}"[:SHOWN] if isinstance(value, np.ndarray) else shown(value)
        raise UsageError(f"{name} is an array of {dimensions} dimensions of {dtype.__name__}, not {what}.")
    return value
