"""Files in an index's folder, opened so that no link in it leads elsewhere.

An index may come from a stranger. A link where mmsearch writes would have it write to any file of whoever uses the
index, and a named pipe would keep it waiting for ever. So a file here is a plain one with one name, or it is refused.
"""

import errno
import os
import stat
from pathlib import Path

from mmsearch.errors import IndexWriteError

BESIDE_DATABASE = ("-wal", "-shm", "-journal")  # what SQLite keeps beside one
# The end of a rollback journal that names a second file, which SQLite deletes once it has read it
# (https://sqlite.org/fileformat2.html, "The Rollback Journal"; pager.c, readSuperJournal). mmsearch writes none.
SUPER_JOURNAL = bytes.fromhex("d9d505f920a163d7")
_FLAGS = ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY")


def open_plain(path: Path | str, flags: int) -> int:
    """A descriptor of a file that is no link, no pipe and no device, and where it is written, has no second name.

    Raises OSError.
    """
    if not hasattr(os, "O_NOFOLLOW") and os.path.islink(path):
        raise OSError(errno.ELOOP, "is a link", str(path))
    for name in _FLAGS:
        flags |= getattr(os, name, 0)
    descriptor = os.open(path, flags, 0o644)
    try:
        _check_plain(path, os.fstat(descriptor), is_written=flags & (os.O_WRONLY | os.O_RDWR) != 0)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def make_folder(path: Path) -> None:
    """Make a folder where there is none. Raises OSError, also for a link to one."""
    path.mkdir(exist_ok=True)
    if path.is_symlink():
        raise OSError(errno.ELOOP, "is a link", str(path))


def check_database(database: Path, *, is_written: bool) -> None:
    """Raises IndexWriteError for a SQLite database that SQLite would write to through a link, or wait at for ever.

    Also for one beside which a journal lies that has SQLite delete another file.
    """
    for suffix in ("", *BESIDE_DATABASE):
        path = f"{database}{suffix}"
        try:
            _check_plain(path, os.lstat(path), is_written=is_written)
            if suffix == "-journal" and _names_another(path):
                raise OSError(errno.EINVAL, "names another file to delete", path)
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as error:
            raise refused(Path(path), error) from error


def has_second_name(path: Path | str) -> bool:
    """Whether a file has a hard link, as `cp -al` makes them; False where there is no file."""
    try:
        return os.lstat(path).st_nlink > 1
    except OSError:
        return False


def refused(path: Path, error: OSError) -> IndexWriteError:
    """What to say of a file that is not opened."""
    if error.errno == errno.ELOOP:
        return IndexWriteError(
            f"{path} is a link, and mmsearch follows none inside an index's folder. Put the file itself there, or "
            "delete the link; the whole folder may be a link."
        )
    if error.errno == errno.EMLINK:
        return IndexWriteError(
            f"{path} has a second name (a hard link, as `cp -al` makes), and writing would change that file too. Copy "
            f"the folder with `cp -r` and put the copy in its place; {path.parent} can be searched as it is."
        )
    if error.errno == errno.EINVAL:
        return IndexWriteError(f"{path} {error.strerror}. Delete it if you did not put it there.")
    return IndexWriteError(f"{path} cannot be opened: {(error.strerror or str(error)).lower()}.")


def _check_plain(path: Path | str, facts: os.stat_result, *, is_written: bool) -> None:
    if stat.S_ISLNK(facts.st_mode):
        raise OSError(errno.ELOOP, "is a link", str(path))
    if not stat.S_ISREG(facts.st_mode):
        raise OSError(errno.EINVAL, "is no plain file", str(path))
    if is_written and facts.st_nlink > 1:
        raise OSError(errno.EMLINK, "has a second name", str(path))


def _names_another(journal: str) -> bool:
    descriptor = open_plain(journal, os.O_RDONLY)
    with os.fdopen(descriptor, "rb") as file:
        file.seek(max(0, os.fstat(descriptor).st_size - len(SUPER_JOURNAL)))
        return file.read() == SUPER_JOURNAL
