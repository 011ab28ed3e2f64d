"""mmsearch: search pictures and texts by meaning, on your own machine.

    with mmsearch.Index("indexes/photos") as index:
        index.add("photos/")
        for hit in index.search("a red bicycle in the snow", k=5):
            print(hit.path, hit.score)

What is listed here is promised; everything else may change.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from mmsearch.errors import Error

if TYPE_CHECKING:
    from mmsearch.client import Client
    from mmsearch.duplicates import Copy, Group
    from mmsearch.encoders.base import Encoder
    from mmsearch.encoders.catalog import load_encoder
    from mmsearch.index import Index, Status
    from mmsearch.ingest import Progress
    from mmsearch.items import Item
    from mmsearch.map import Map
    from mmsearch.planning import IngestOptions, Report
    from mmsearch.query import Query
    from mmsearch.search import Hit

# ONNX Runtime (from 1.29 on, with a device id in the user's cache) and the Hugging Face hub report their use, unless
# this is set before they are imported, in this process and in those that it starts.
os.environ |= {"ORT_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}

__version__ = "0.1.0"
__all__ = [
    "Client",
    "Copy",
    "Encoder",
    "Error",
    "Group",
    "Hit",
    "Index",
    "IngestOptions",
    "Item",
    "Map",
    "Progress",
    "Query",
    "Report",
    "Status",
    "load_encoder",
]

# Imported when they are first used: a search on the command line needs few of them, and imports are half of its time
_WHERE = {
    "Client": "mmsearch.client",
    "Copy": "mmsearch.duplicates",
    "Group": "mmsearch.duplicates",
    "Encoder": "mmsearch.encoders.base",
    "load_encoder": "mmsearch.encoders.catalog",
    "Index": "mmsearch.index",
    "Status": "mmsearch.index",
    "Progress": "mmsearch.ingest",
    "Item": "mmsearch.items",
    "Map": "mmsearch.map",
    "IngestOptions": "mmsearch.planning",
    "Report": "mmsearch.planning",
    "Query": "mmsearch.query",
    "Hit": "mmsearch.search",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_WHERE[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
