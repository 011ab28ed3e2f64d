"""Names of files: which paths lead to one file, and what removing one of them takes away.

A file may go by many paths: symbolic links to it or to a folder above it, hard links, mounts of one folder at two
places, file systems that do not tell upper from lower case. Whoever removes a copy has to know that it is one.
"""

import errno
import os
import stat
import unicodedata
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Name:
    """A path as the file system has it at a moment."""

    path: str
    file: tuple[Any, ...]  # the same for all names of one file, as long as nobody writes to it
    entry: tuple[Any, ...]  # of the folder's entry that removing the path would take away
    is_link: bool  # symbolic; removing the path would take away the link alone
    entries: int  # of the file in all folders (hard links)
    size_bytes: int

    @property
    def is_direct(self) -> bool:
        """Whether no symbolic link lies on the way."""
        return not self.is_link and os.path.realpath(self.path) == self.path


def look_up(path: str) -> Name | None:
    """The name as it is now; None where there is no file that can be looked at."""
    try:
        itself, file = os.lstat(path), os.stat(path)
        folder = os.stat(os.path.dirname(path))
    except (OSError, ValueError):
        return None
    if not stat.S_ISREG(file.st_mode):
        return None
    name = unicodedata.normalize("NFC", os.path.basename(path)).casefold()
    return Name(
        path,
        _identity(file, path),
        (folder.st_dev, folder.st_ino, name),
        stat.S_ISLNK(itself.st_mode),
        file.st_nlink,
        file.st_size,
    )


def _identity(file: os.stat_result, path: str) -> tuple[Any, ...]:
    """What no two files have in common. Not the device: an overlay, a network drive that is mounted twice, and a
    snapshot show one file under several. Nobody can set the time of change of the inode (ctime)."""
    if not file.st_ino:  # a file system without such numbers
        return (os.path.normcase(os.path.realpath(path)),)
    return file.st_ino, file.st_size, file.st_mtime_ns, file.st_ctime_ns


def open_directly(path: str) -> int | None:
    """A descriptor of what a path leads to without any symbolic link, to be read; None where there is a link.

    Each folder is opened from the one above it, so that nobody can put a link in between the check and the opening.
    Raises OSError, ValueError. A pipe is not waited for.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    if os.open not in os.supports_dir_fd:  # Windows, where making a link takes an administrator
        return os.open(path, flags) if os.path.realpath(path) == path else None
    into = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    *folders, name = os.path.normpath(path).lstrip(os.sep).split(os.sep)
    folder = os.open(os.sep, into)
    try:
        for inner in folders:
            above, folder = folder, os.open(inner, into, dir_fd=folder)
            os.close(above)
        return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.EMLINK, errno.EACCES):
            return None  # or there is none, which whoever follows links will find
        raise
    finally:
        os.close(folder)
