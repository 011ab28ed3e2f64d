"""Folders and files: what is there, found without opening any of it.

A scan lists folders and asks for size and time of change, so that a folder of a hundred thousand unchanged files costs
little more than listing it. What could not be looked at is said (`Unread`), never left out silently, because "could not
be read" must not be taken for "is gone". The folders in which a NAS or a system keeps things of its own (thumbnails,
deleted files) are left out, and said too (`LeftOut`).

Paths are `str` as `os.fsdecode` makes them: absolute, with surrogate escapes for bytes that are not UTF-8, so that any
name a file system knows survives the way through the index and back.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Literal, NamedTuple

from mmsearch.errors import MissingRootError, SourceError, UsageError
from mmsearch.facts import IMAGE_SUFFIXES

TEXT_SUFFIXES = frozenset({".txt", ".md", ".markdown"})
SIDECAR_SUFFIXES = (".txt", ".caption")  # what img2dataset, kohya-ss and most other trainers write
# Lower case. Synology's @eaDir holds thumbnails beside every picture, the others what was deleted, or is nobody's
# picture; their names are those that the vendors document.
SYSTEM_FOLDERS = frozenset({
    "@eadir", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", "$recycle.bin", "recycler",
    "system volume information", "lost+found", "network trash folder", "__macosx",
})  # fmt: skip
SYSTEM_FILES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini"})

Kind = Literal["image", "text", "caption"]


class SourceFile(NamedTuple):  # a frozen dataclass takes longer to make, and a run makes one a file
    """A file to index."""

    path: str
    kind: Kind
    size_bytes: int
    modified_ns: float  # as `time_of_change` gives it
    caption_of: str | None = None  # path of the picture that a side-car belongs to


@dataclass(frozen=True, slots=True)
class Unread:
    """A folder or file that could not be looked at; items at or under its path are to be kept."""

    path: str
    reason: str
    is_folder: bool


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder that was listed, and what it is known by again."""

    path: str
    identity: str


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A folder of the system's own (SYSTEM_FOLDERS) that was not looked into."""

    path: str


Entry = SourceFile | Unread | Folder | LeftOut


@dataclass(frozen=True)
class ScanOptions:
    """What a scan leaves out, and whether it follows links.

    exclude: patterns as in a .gitignore, relative to the root. `*.gif` and `drafts` match at any depth, `/drafts` and
    `2019/raw` from the root on, `drafts/` folders only; `**` stands for any number of folders, and a leading `!` takes
    back what an earlier pattern left out, or what is left out by itself: `!@eaDir/`.
    """

    exclude: tuple[str, ...] = ()
    follow_links: bool = False


def scan(root: str | os.PathLike[str], options: ScanOptions | None = None) -> Iterator[SourceFile | Unread]:
    """Everything to index in a folder, or a single file, in an order that is always the same.

    Within a folder files come first, sorted by name, then its folders. Hidden files and folders (a leading dot) and the
    folders of the system's own are left out; the root itself may be one. A side-car appears once for each picture that
    it belongs to: `dog.txt`, `dog.caption` for every picture named dog, `dog.jpg.txt` for dog.jpg alone. With links
    followed, a folder that can be reached in several ways is visited once, by its own path if that is under the root.

    Raises MissingRootError if the root is not there, SourceError if it is nothing that can be indexed, UsageError for a
    pattern that makes no sense; all at the call, not at the first item.
    """
    return (entry for entry in survey(root, options) if isinstance(entry, SourceFile | Unread))


def survey(root: str | os.PathLike[str], options: ScanOptions | None = None) -> Iterator[Entry]:
    """The same with the folders that were listed, each before what lies in it, and those that were left out."""
    options = options or ScanOptions()
    path = os.path.abspath(os.fsdecode(root))
    excluded = _matcher(path, options.exclude)
    try:
        found = os.stat(path)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in GONE:
            raise MissingRootError(f"{path} is not there.") from error
        return iter([Unread(path, reason(error), is_folder=True)])
    if stat.S_ISDIR(found.st_mode):
        return _scan_folder(path, excluded, options.follow_links)
    if not stat.S_ISREG(found.st_mode):
        raise SourceError(f"{path} is neither a file nor a folder.")
    return _scan_file(path, found, excluded, options.follow_links)


GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)  # what a path that leads nowhere gives, also over a link


def is_there(path: str) -> bool:
    """Whether a path leads to something, links followed; what cannot be looked at counts as there."""
    try:
        os.stat(path)
    except OSError as error:
        return error.errno not in GONE
    except ValueError:
        return False
    return True


class Identities:
    """What folders are known by again, whatever lies at their paths: the file system, and the folder's number in it."""

    def __init__(self) -> None:
        self._systems: dict[int, int] = {}  # device -> file system

    def of(self, path: str) -> str:
        """Raises OSError."""
        return self.from_stat(path, os.stat(path))

    def from_stat(self, path: str, found: os.stat_result) -> str:
        """As text: these numbers have up to 64 bits, without a sign."""
        if found.st_dev not in self._systems:
            system = 0
            with contextlib.suppress(AttributeError, OSError):  # Windows has no such call
                system = os.statvfs(path).f_fsid
            # A device may have another number after each restart; most file systems have an id of their own
            self._systems[found.st_dev] = system or found.st_dev
        return f"{self._systems[found.st_dev]}:{found.st_ino}"


def time_of_change(found: os.stat_result) -> float:
    """In ns since 1970: an int, or a float from 2262 on and before 1677, which no column of 64 bits holds."""
    ns = found.st_mtime_ns
    return ns if -(2**63) <= ns < 2**63 else float(ns)


def is_visible(name: str) -> bool:
    """Whether something of this name in a folder is the user's, neither hidden nor the system's own."""
    return not name.startswith(".") and name.casefold() not in SYSTEM_FOLDERS and name.casefold() not in SYSTEM_FILES


def lies_beside(side_car: str, picture: str) -> bool:
    """Whether a side-car belongs to a picture by their paths: dog.txt to dog.jpg, dog.jpg.txt too."""
    stem = os.path.splitext(side_car)[0]
    return stem in (picture, os.path.splitext(picture)[0])


def side_car_after(side_car: str, before: str, now: str) -> str:
    """Where a side-car lies that has moved along with its picture."""
    of_name = os.path.splitext(side_car)[0] == before
    return (now if of_name else os.path.splitext(now)[0]) + os.path.splitext(side_car)[1]


def left_out(root: str, options: ScanOptions) -> Callable[[str], bool]:
    """Whether a scan of the root leaves out a path below it, by its name alone."""
    excluded = _matcher(root, options.exclude)
    below = root.rstrip(os.sep) + os.sep

    def leaves_out(path: str) -> bool:
        if path == root:
            return excluded is not None and excluded(os.path.basename(path))
        *folders, name = path[len(below) :].split(os.sep)
        inside = ""
        for folder in folders:
            inside += f"{folder}/"
            if folder.startswith(".") or (excluded or _is_system_folder)(inside):
                return True
        return name.startswith(".") or (excluded is not None and excluded(inside + name))

    return leaves_out


def _matcher(root: str, patterns: Sequence[str]) -> Callable[[str], bool] | None:
    if not patterns:
        return None
    from pathspec import GitIgnoreSpec  # only those who exclude pay for it

    lines = [_relative(root, pattern) for pattern in patterns]
    try:
        spec = GitIgnoreSpec.from_lines(lines)
    except ValueError as error:
        raise UsageError(f"{' '.join(patterns)!r} cannot be used to exclude files: {error}") from error

    def excluded(path: str) -> bool:
        by_pattern = spec.check_file(path).include
        return _is_system_folder(path) if by_pattern is None else by_pattern

    return excluded


def _is_system_folder(path: str) -> bool:
    return path.endswith("/") and path[:-1].rpartition("/")[2].casefold() in SYSTEM_FOLDERS


def _relative(root: str, pattern: str) -> str:
    """A pattern as a .gitignore at the root would have it: `./drafts` and a whole path are from the root on."""
    if pattern.startswith("#"):
        return "\\" + pattern  # there are no comments here
    if pattern.startswith("./"):
        return pattern[1:]
    below = root.rstrip("/") + "/"
    return pattern[len(below) - 1 :] if pattern.startswith(below) else pattern


def _scan_folder(root: str, excluded: Callable[[str], bool] | None, follow_links: bool) -> Iterator[Entry]:
    waiting = [(root, "")]  # folders to visit, the next one last; with their path relative to the root, "" or "a/b/"
    linked: list[tuple[str, str]] = []  # after all the others, so that a folder's own path wins over a link to it
    visited: set[tuple[int, int]] = set()
    identities = Identities()
    while waiting or linked:
        folder, inside = waiting.pop() if waiting else linked.pop(0)
        try:
            found = os.stat(folder)
            if follow_links:
                if (found.st_dev, found.st_ino) in visited:
                    continue
                visited.add((found.st_dev, found.st_ino))
            identity = identities.from_stat(folder, found)  # before its listing: a drive may go in between
            with os.scandir(folder) as listing:
                entries = sorted(listing, key=attrgetter("name"))
        except OSError as error:  # also when it has just vanished: an unplugged drive vanishes in the same way
            yield Unread(folder, reason(error), is_folder=True)
            continue
        yield Folder(folder, identity)
        files: list[tuple[os.DirEntry[str], str]] = []
        folders: list[tuple[str, str]] = []
        for entry in entries:
            name = entry.name
            if name.startswith("."):
                continue
            try:
                if entry.is_dir(follow_symlinks=follow_links):
                    if name.casefold() in SYSTEM_FOLDERS and (excluded is None or excluded(f"{inside}{name}/")):
                        yield LeftOut(entry.path)
                    elif excluded is None or not excluded(f"{inside}{name}/"):
                        is_link = follow_links and entry.is_symlink()
                        (linked if is_link else folders).append((entry.path, f"{inside}{name}/"))
                elif (
                    (suffix := suffix_of(name)) in _KINDS
                    and entry.is_file(follow_symlinks=follow_links)
                    and (excluded is None or not excluded(inside + name))
                ):
                    files.append((entry, suffix))
            except OSError as error:  # a link that leads nowhere one may look
                yield Unread(entry.path, reason(error), is_folder=False)
        waiting.extend(reversed(folders))
        yield from _classify(files, follow_links)


def _classify(files: Sequence[tuple[os.DirEntry[str], str]], follow_links: bool) -> Iterator[SourceFile | Unread]:
    """The files of one folder, told apart: captions by the pictures beside them."""
    pictures: dict[str, list[str]] = {}  # by what a side-car is named before its suffix: "dog" and "dog.jpg"
    if any(suffix in SIDECAR_SUFFIXES for _, suffix in files):
        for entry, suffix in files:
            if _KINDS[suffix] == "image":
                pictures.setdefault(entry.name[: -len(suffix)], []).append(entry.path)
                pictures.setdefault(entry.name, []).append(entry.path)
    for entry, suffix in files:
        kind = _KINDS[suffix]
        owners = pictures.get(entry.name[: -len(suffix)]) if suffix in SIDECAR_SUFFIXES else None
        if kind is None and owners is None:
            continue
        try:
            found = entry.stat(follow_symlinks=follow_links)
        except OSError as error:
            yield Unread(entry.path, reason(error), is_folder=False)
            continue
        if owners is not None:
            for owner in owners:
                yield SourceFile(entry.path, "caption", found.st_size, time_of_change(found), owner)
        elif kind is not None:
            yield SourceFile(entry.path, kind, found.st_size, time_of_change(found))


def _scan_file(
    path: str, found: os.stat_result, excluded: Callable[[str], bool] | None, follow_links: bool
) -> Iterator[SourceFile | Unread]:
    """A file named by itself, and what belongs to it: the same items that a scan of its folder would give."""
    folder, name = os.path.split(path)
    suffix = suffix_of(name)
    stem = name[: len(name) - len(suffix)]
    kind = _KINDS.get(suffix)
    owners: list[SourceFile] = []
    if suffix in SIDECAR_SUFFIXES:
        names = [stem] if suffix_of(stem) in IMAGE_SUFFIXES else _spellings((stem,), IMAGE_SUFFIXES)
        owners = _existing(folder, names, excluded, follow_links)
    if kind is None and not owners:
        raise SourceError(
            f"{path} has no suffix that mmsearch reads: {' '.join(sorted(IMAGE_SUFFIXES | TEXT_SUFFIXES))}."
        )
    if excluded is not None and excluded(name):
        return iter(())
    if owners:
        return iter([SourceFile(path, "caption", found.st_size, time_of_change(found), owner.path) for owner in owners])
    itself = SourceFile(path, kind or "text", found.st_size, time_of_change(found))
    if kind != "image":
        return iter([itself])
    sidecars = _existing(folder, _spellings((stem, name), SIDECAR_SUFFIXES), excluded, follow_links)
    return iter([itself, *(sidecar._replace(kind="caption", caption_of=path) for sidecar in sidecars)])


def _existing(
    folder: str, names: Iterable[str], excluded: Callable[[str], bool] | None, follow_links: bool
) -> list[SourceFile]:
    """Those of the names that are files; candidates are tried, since `mmsearch index *.jpg` would otherwise list one
    folder ten thousand times."""
    files: dict[tuple[int, int, str], SourceFile] = {}  # where case does not count, two names are one file
    for name in names:
        path = os.path.join(folder, name)
        try:
            found = os.stat(path, follow_symlinks=follow_links)
        except OSError:
            continue
        if stat.S_ISREG(found.st_mode) and (excluded is None or not excluded(name)):
            file = SourceFile(path, _KINDS[suffix_of(name)] or "text", found.st_size, time_of_change(found))
            files.setdefault((found.st_dev, found.st_ino, name.lower()), file)
    return sorted(files.values(), key=lambda file: file.path)


def _spellings(stems: Iterable[str], suffixes: Iterable[str]) -> list[str]:
    return [stem + spelling for stem in stems for suffix in suffixes for spelling in (suffix, suffix.upper())]


def suffix_of(name: str) -> str:
    """Lower case, with its dot; a name that begins with its only dot has none."""
    dot = name.rfind(".")
    return name[dot:].lower() if dot > 0 else ""


_KINDS: dict[str, Kind | None] = {
    **dict.fromkeys(SIDECAR_SUFFIXES, None),  # of use only beside a picture
    **dict.fromkeys(TEXT_SUFFIXES, "text"),
    **dict.fromkeys(IMAGE_SUFFIXES, "image"),
}


def reason(error: Exception) -> str:
    """Why something could not be read, in lower case and without the path, which is known."""
    return ((error.strerror if isinstance(error, OSError) else None) or str(error)).lower()
