"""Files that the index knows and that a run did not find: deleted, or only away?

An unplugged drive leaves an empty folder, none at all, or one that lies on another device and may hold something else.
So a file is taken for deleted only where its folder, and each one above it up to the source, is still there, holds
something, and is the folder that it was: the same one of the same file system, or one that still holds a file that it
held. All else is kept, and said by its topmost folder.

A folder that was restored or cloned is another one, and its files may have other times. So a file with the content that
it had tells the folder too.
"""

import functools
import os
import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mmsearch.errors import MediaError
from mmsearch.locations import option_for
from mmsearch.media import content_hash
from mmsearch.sources.folders import GONE, Identities, is_visible, reason
from mmsearch.store.records import FileRow, FolderRow


@dataclass
class Away:
    """A folder that is not what it was, and the files that are kept for it."""

    folder: str
    state: str
    files: list[FileRow] = field(default_factory=list)

    @property
    def items(self) -> int:
        """Files of which something is in the index."""
        return sum(row.kind in ("image", "text") and row.skipped is None for row in self.files)

    def sentence(self, index: Path) -> str:
        """What a person is told, with the command that removes the items from the index in a folder."""
        files = f"{self.items} file{'' if self.items == 1 else 's'}"
        return (
            f"{self.folder} {self.state}, but the index holds {files} from it, and they were kept. Plug the drive in. "
            f"If they are gone for good: mmsearch remove {shlex.quote(self.folder)}{option_for(index)} (or index with "
            "--accept-missing, for all that is missing)."
        )


def told_apart(
    lost: Iterable[FileRow],
    tops: Sequence[str],
    found: Collection[FileRow],
    touched: Sequence[FileRow],
    recorded: Mapping[str, FolderRow],
    renamed: Collection[str],
) -> tuple[list[FileRow], list[Away]]:
    """Files that were deleted, and folders that are away.

    tops: sources; what lies in none of them is judged by its own folder. found: known files that are there, unchanged.
    touched: known files that are there with another time and the same size; they are read where nothing else tells.
    recorded: what is known of folders. renamed: folders that have another name now.
    """
    judge = _Judge(found, touched, recorded, renamed)
    deleted: list[FileRow] = []
    away: dict[str, Away] = {}
    for row in lost:
        for folder in _from_the_top(row.path, tops):
            state = judge.state(folder)
            if state is not None:
                away.setdefault(folder, Away(folder, state)).files.append(row)
                break
        else:
            deleted.append(row)
    for folder in [one.folder for one in away.values() if not one.items]:  # nothing to lose
        deleted += away.pop(folder).files
    return deleted, list(away.values())


def renamed_folders(
    moves: Iterable[tuple[str, str]], recorded: Mapping[str, FolderRow], read: Mapping[str, str]
) -> set[str]:
    """Folders that are the same under another name, by files that moved from one to the other: (old path, new path).

    read: folder -> identity, of those that were listed in this run.
    """
    renamed: set[str] = set()
    for old, new in moves:
        before, now = os.path.dirname(old), os.path.dirname(new)
        while before not in renamed and before != now and before in recorded and now in read:
            if recorded[before].identity != read[now]:
                break
            renamed.add(before)
            before, now = os.path.dirname(before), os.path.dirname(now)
    return renamed


def folders_above(paths: Iterable[str]) -> set[str]:
    """Every folder in which one of the paths lies, at any depth."""
    folders: set[str] = set()
    for path in paths:  # of every file of a run: os.path.dirname takes three times as long
        while (folder := path[: path.rfind(os.sep)] or os.sep) not in folders:
            folders.add(folder)
            path = folder
    return folders


def _from_the_top(path: str, tops: Sequence[str]) -> Iterator[str]:
    """The folders of a path, from the outermost source that it lies in down to its own."""
    holding = [top for top in tops if path == top or path.startswith(top.rstrip(os.sep) + os.sep)]
    if holding == [path]:
        yield path  # a file that is a source by itself
        return
    own = os.path.dirname(path)
    folder = min(holding, key=len, default=own)
    while not holding and not os.path.lexists(os.path.dirname(folder)):
        folder = os.path.dirname(folder)
    yield folder
    for name in own[len(folder) :].split(os.sep):
        if name:
            folder = os.path.join(folder, name)
            yield folder


class _Judge:
    """Says of folders whether they are what they were; looks at each once."""

    def __init__(
        self,
        found: Collection[FileRow],
        touched: Sequence[FileRow],
        recorded: Mapping[str, FolderRow],
        renamed: Collection[str],
    ) -> None:
        self._found = found
        self._touched = touched
        self._recorded = recorded
        self._renamed = renamed
        self._identities = Identities()
        self._states: dict[str, str | None] = {}

    def state(self, folder: str) -> str | None:
        """What is wrong with a folder; None: it is there, and what is missing from it was deleted."""
        if folder not in self._states:
            self._states[folder] = self._look(folder)
        return self._states[folder]

    def _look(self, folder: str) -> str | None:
        known = self._recorded.get(folder, FolderRow(None, away=False))
        try:
            with os.scandir(folder) as listing:
                is_empty = not any(is_visible(entry.name) for entry in listing)
            identity = self._identities.of(folder)
        except OSError as error:
            if error.errno not in GONE:
                return f"cannot be read ({reason(error)})"
            return None if folder in self._renamed else "is not there"
        if is_empty:
            return "is empty"
        # While the files of a drive are kept, others may have been found in the empty folder on which it was mounted
        if folder in (self._holding_again if known.away else self._holding):
            return None
        is_same = identity == known.identity or (known.identity is None and not known.away)  # or never recorded
        if is_same and not os.path.ismount(folder):
            return None
        if self._holds_content(folder, known.away):
            return None
        return "is another folder now, or lies on another device"

    def _holds_content(self, folder: str, again: bool) -> bool:
        """Whether one of the touched files below a folder has the content that it had; one will do."""
        below = folder.rstrip(os.sep) + os.sep
        return any(
            row.path.startswith(below) and (row.away or not again) and _has_content(row) for row in self._touched
        )

    @functools.cached_property
    def _holding(self) -> set[str]:
        """Folders that still hold a file that they held."""
        return folders_above(row.path for row in self._found)

    @functools.cached_property
    def _holding_again(self) -> set[str]:
        """Folders that hold a file again that was kept while it was not found."""
        return folders_above(row.path for row in self._found if row.away)


def _has_content(row: FileRow) -> bool:
    try:
        return content_hash(row.path) == row.content_hash
    except (MediaError, OSError):
        return False
