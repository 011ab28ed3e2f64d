"""What rclip 3.3.0 does with a folder, by its own code: `python peer_rclip.py index FOLDER`, `fill FOLDER ROWS.npy`.

Run by the Python of rclip's virtual environment, with $RCLIP_DATADIR set. rclip itself always searches after it has
indexed; here it indexes alone, with its own batch of 8. `fill` writes its table as it would have written it itself.
"""

import os
import sys
from pathlib import Path

BATCH = 8  # its default


def index(folder: str) -> None:
    from rclip.main import init_rclip

    os.chdir(folder)
    rclip, model, database = init_rclip(folder, BATCH)
    rclip.close()
    model.close()
    database.close()


def fill(folder: str, rows: str) -> None:
    """A row for each file below the folder, in the order of their names; where there are more rows, for no file."""
    import numpy as np
    from rclip.db import DB

    vectors = np.load(rows, mmap_mode="r")  # (n, 512) float32
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    database = DB(Path(os.environ["RCLIP_DATADIR"]) / "db.sqlite3")
    for number, vector in enumerate(vectors):
        path, size, modified = os.path.join(folder, f"{number:08}.jpg"), 4_000_000 + number, float(number)
        if number < len(files):
            facts = files[number].stat()
            path, size, modified = str(files[number]), facts.st_size, facts.st_mtime
        database.upsert_image(
            {
                "filepath": path,
                "modified_at": modified,
                "size": size,
                "vector": vector.tobytes(),
                "hash": f"{number:064x}",
            },
            commit=False,
        )
    database.close()


if __name__ == "__main__":
    {"index": index, "fill": fill}[sys.argv[1]](*sys.argv[2:])
