"""Whether index.db holds what mmsearch writes; asked when something went wrong that a sound index cannot bring about.

A changed bit can make a number a text, a text no UTF-8 or JSON, a vector longer than others. To look at each value
whenever it is read would slow every answer. So whatever is raised from inside by a method of `Index` is taken as a
question: is the index damaged? If it is, that is said; if not, the error is as it was.
"""

import contextlib
import functools
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from mmsearch.errors import Error, in_a_line
from mmsearch.store.failures import damaged
from mmsearch.store.metadata import DATABASE, Store

C = TypeVar("C")

LOOK_S = 20.0  # after which the rest is taken to be sound
STEPS = 10_000  # of SQLite's machine, after which the time is looked at
# What a wrong type or value is met with, deep inside; an error that a person's own code raises is seldom one of these
UNEXPECTED = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    StopIteration,
    TypeError,
    ValueError,
    sqlite3.Error,
)

_INTEGER, _TEXT, _BLOB = "integer", "text", "blob"
_JSON = "json"  # an object
# For each table, its columns and what they hold; a question mark: or NULL
COLUMNS = {
    "settings": {"key": _TEXT, "value": _TEXT},
    "roots": {"id": _INTEGER, "path": _TEXT, "path_bytes?": _BLOB, "options": _JSON, "updated_at?": _TEXT},
    "files": {
        "id": _INTEGER,
        "path": _TEXT,
        "path_bytes?": _BLOB,
        "kind": _TEXT,
        "size_bytes": _INTEGER,
        "modified_ns?": _INTEGER,
        "content_hash?": _TEXT,
        "skipped?": _TEXT,
    },
    "items": {
        "id": _INTEGER,
        "name?": _TEXT,
        "kind": _TEXT,
        "file_id?": _INTEGER,
        "caption_of?": _INTEGER,
        "text?": _TEXT,
        "line?": _INTEGER,
        "width?": _INTEGER,
        "height?": _INTEGER,
        "format?": _TEXT,
        "taken_at?": _TEXT,
        "camera?": _TEXT,
        "latitude_deg?": "real",
        "longitude_deg?": "real",
        "content_hash?": _TEXT,
        "facts?": _JSON,
    },
    "vectors": {"id": _INTEGER, "item_id": _INTEGER, "kind": _TEXT, "vector": _BLOB, "feature?": _BLOB},
    "projected": {"id": _INTEGER, "vector": _BLOB},
    "encoded": {"kind": _TEXT, "content_hash": _TEXT, "vector": _BLOB, "feature?": _BLOB},
    "dead_vectors": {"id": _INTEGER, "kind": _TEXT},
    "segments": {
        "file": _TEXT,
        "kind": _TEXT,
        "after_id": _INTEGER,
        "through_id": _INTEGER,
        "count": _INTEGER,
        "size_bytes": _INTEGER,
        "cells?": _JSON,
    },
    "heads": {"name": _TEXT, "hash": _TEXT, "tensors": _BLOB, "report": _JSON, "made_at": _TEXT},
    "feedback": {"query": _TEXT, "item_id": _INTEGER, "match": _INTEGER, "added_at": _TEXT},
}
_KIND = "kind NOT IN ('image', 'text')"
_WIDTH = "(SELECT 2 * CAST(value AS INTEGER) FROM settings WHERE key = 'dim')"  # bytes of a vector
# For each table, more that holds for a row that mmsearch never wrote
WRONG = {
    "settings": "key = 'dim' AND (value GLOB '*[^0-9]*' OR value = '')",
    "items": f"{_KIND} OR NOT EXISTS (SELECT 1 FROM vectors v WHERE v.item_id = items.id AND v.kind = items.kind)",
    "vectors": f"{_KIND} OR length(vector) <> {_WIDTH} OR length(feature) <> (SELECT length(feature) FROM vectors)",
    "projected": f"length(vector) <> {_WIDTH} OR id NOT IN (SELECT id FROM vectors)",
    "encoded": f"{_KIND} OR length(vector) <> {_WIDTH}",
    "segments": f"{_KIND} OR after_id < 0 OR through_id < after_id OR count < 0 OR size_bytes < 0",
    "dead_vectors": f"{_KIND} OR id > (SELECT seq FROM sqlite_sequence WHERE name = 'vectors')",
}
NOT_THERE = (  # what a row says is elsewhere
    "SELECT 1 FROM settings WHERE key = 'heads' AND value NOT IN (SELECT hash FROM heads)",
    "SELECT 1 FROM settings WHERE key = 'heads' AND "
    "EXISTS (SELECT 1 FROM vectors WHERE id NOT IN (SELECT id FROM projected))",
    "SELECT 1 FROM (SELECT count(*) AS found FROM settings WHERE key IN ('model', 'dim', 'revision')) WHERE found < 3",
)


def fault(folder: Path) -> str | None:
    """What is wrong with index.db, None where nothing is found in LOOK_S."""
    end = time.monotonic() + LOOK_S
    try:
        with contextlib.closing(Store(folder)) as store, store.read() as reader:
            reader.connection.set_progress_handler(lambda: time.monotonic() > end, STEPS)
            try:
                return _fault(reader.connection, reader.version)
            except sqlite3.DatabaseError as error:
                interrupted = getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_INTERRUPT
                return None if interrupted else in_a_line(error)
            finally:
                reader.connection.set_progress_handler(None, 0)
    except (Error, *UNEXPECTED) as error:
        return in_a_line(error)


def _fault(connection: sqlite3.Connection, version: int) -> str | None:
    if version < 1:
        made = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'settings'").fetchone() is not None
        return "its tables have no version" if made else None  # else the making of it was cut short
    # SQLite's own look comes last: of a large index it does not reach the end in time
    tables = [table for table in COLUMNS if version > 2 or table not in ("projected", "encoded", "heads", "feedback")]
    for table in tables:
        wrong = [_wrong(column, kind) for column, kind in COLUMNS[table].items() if version > 1 or column != "cells?"]
        wrong += [f"({WRONG[table]})"] if table in WRONG else []
        if connection.execute(f"SELECT 1 FROM {table} WHERE {' OR '.join(wrong)} LIMIT 1").fetchone() is not None:
            return f"the table {table} holds what mmsearch does not write"
    if version > 2 and any(connection.execute(asked).fetchone() is not None for asked in NOT_THERE):
        return "a row that another needs is missing"
    if connection.execute("PRAGMA foreign_key_check").fetchone() is not None:
        return "a row that another needs is missing"
    (told,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
    return None if told == "ok" else " ".join(str(told).split())[:200]


def _wrong(column: str, kind: str) -> str:
    """SQL that holds where a column has another type."""
    name = column.removesuffix("?")
    types = [_TEXT] if kind == _JSON else ["integer", "real"] if kind == "real" else [kind]
    types += ["null"] if column.endswith("?") else []
    wrong = f"typeof({name}) NOT IN ({', '.join(repr(each) for each in types)})"
    if kind == _JSON:  # json_type raises for what json_valid refuses
        is_object = f"CASE WHEN json_valid({name}) THEN json_type({name}) = 'object' ELSE 0 END"
        wrong += f" OR ({name} IS NOT NULL AND NOT {is_object})"
    return f"({wrong})"


def says_damage(cls: type[C]) -> type[C]:
    """A class whose public methods say that the index in its `folder` is damaged, where that is why they fail."""
    for name, member in list(vars(cls).items()):
        if name == "__init__" or (callable(member) and not name.startswith("_")):
            setattr(cls, name, _saying(member))
    return cls


def _saying(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def saying(self: Any, *arguments: Any, **named: Any) -> Any:
        try:
            return method(self, *arguments, **named)
        except UNEXPECTED as error:
            folder: Path | None = getattr(self, "folder", None)  # none yet, where the index was not opened
            if folder is None or not (folder / DATABASE).is_file() or (reason := fault(folder)) is None:
                raise
            raise damaged(folder, reason) from error

    return saying
