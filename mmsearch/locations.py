"""Where indexes live: a bare name is looked up in one place, anything else is a folder."""

import os
import shlex
from pathlib import Path

from mmsearch.errors import UsageError

DEFAULT = "default"


def index_folder(name: str) -> Path:
    """The folder of an index: `photos` is ./indexes/photos where ./indexes exists, else in the user's data folder.

    Anything with a separator in it (`./photos`, `/data/photos`) is that folder itself.
    """
    if not name.strip() or name in (".", ".."):
        raise UsageError(
            f"'{name}' is no name for an index. Give a name such as photos, or a folder such as ./photos-index."
        )
    if os.sep in name or (os.altsep and os.altsep in name):
        return Path(os.path.expanduser(name))
    if Path("indexes").is_dir():
        return Path("indexes") / name
    import platformdirs

    return Path(platformdirs.user_data_dir("mmsearch")) / "indexes" / name


def option_for(folder: Path) -> str:
    """What a command line that is advised needs so that it is about this index: " -i NAME", or nothing."""
    if folder == index_folder(os.environ.get("MMSEARCH_INDEX") or DEFAULT):
        return ""
    by_name = folder.name.strip() and folder == index_folder(folder.name)
    return f" -i {shlex.quote(folder.name if by_name else os.path.join(folder.parent, folder.name))}"
