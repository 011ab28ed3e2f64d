"""clip-retrieval's index and back end, by its own Python: `build VECTORS FOLDER` and `serve FOLDER PORT`.

The index is the one that autofaiss chooses, as `clip-retrieval index` has it. The back end loads a model at its start,
whose weights come over the network; no query here needs one, so that it gets none. It listens at 127.0.0.1 alone.
"""

import json
import sys
from pathlib import Path
from typing import Any


def build(vectors: str, folder: Path) -> None:
    """An index of rows of length 1, with paths as its metadata."""
    import numpy as np
    import pandas as pd
    from autofaiss import build_index

    rows = np.load(vectors)
    (folder / "metadata").mkdir(parents=True)
    paths = pd.DataFrame({"image_path": [f"/photos/{number:08}.jpg" for number in range(len(rows))]})
    paths.to_parquet(folder / "metadata" / "metadata_0.parquet")
    (folder / "indices.json").write_text(json.dumps({"photos": str(folder)}))
    build_index(
        rows,
        index_path=str(folder / "image.index"),
        index_infos_path=str(folder / "image.json"),
        metric_type="ip",
        max_index_memory_usage="4G",
    )


def serve(folder: Path, port: int) -> None:
    """Answer /knn-service until it is ended."""
    import all_clip
    import flask

    run = flask.Flask.run

    def run_here(app: Any, host: str, port: int, debug: bool) -> None:
        run(app, host="127.0.0.1", port=port, debug=False)

    all_clip.load_clip = lambda *arguments, **options: (None, None, None)
    flask.Flask.run = run_here
    from clip_retrieval.clip_back import clip_back

    clip_back(
        indices_paths=str(folder / "indices.json"),
        port=port,
        enable_mclip_option=False,
        provide_aesthetic_embeddings=False,
        columns_to_return=["image_path"],
        enable_faiss_memory_mapping=True,
    )


if __name__ == "__main__":
    if sys.argv[1] == "build":
        build(sys.argv[2], Path(sys.argv[3]))
    else:
        serve(Path(sys.argv[2]), int(sys.argv[3]))
