"""Where indexes live: a bare name is looked up in one place, anything else is a folder."""

import os
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
        return Path(name).expanduser()
    if Path("indexes").is_dir():
        return Path("indexes") / name
    import platformdirs

    return Path(platformdirs.user_data_dir("mmsearch")) / "indexes" / name
