"""mmsearch: search pictures and texts by meaning, on your own machine.

    with mmsearch.Index("indexes/photos") as index:
        index.add("photos/")
        for hit in index.search("a red bicycle in the snow", k=5):
            print(hit.path, hit.score)

What is listed here is promised; everything else may change.
"""

from mmsearch.client import Client
from mmsearch.duplicates import Copy, Group
from mmsearch.encoders.base import Encoder
from mmsearch.encoders.catalog import load_encoder
from mmsearch.errors import Error
from mmsearch.index import Index, Status
from mmsearch.ingest import Progress
from mmsearch.items import Item
from mmsearch.map import Map
from mmsearch.planning import IngestOptions, Report
from mmsearch.query import Query
from mmsearch.search import Hit

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
