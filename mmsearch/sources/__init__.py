"""What there is to index: folders and single files, the passages of texts, the captions in tables."""

from mmsearch.sources.folders import ScanOptions, SourceFile, Unread, scan
from mmsearch.sources.tables import BadRow, Caption, read_captions
from mmsearch.sources.texts import Passage, passages, read_text

__all__ = [
    "BadRow",
    "Caption",
    "Passage",
    "ScanOptions",
    "SourceFile",
    "Unread",
    "passages",
    "read_captions",
    "read_text",
    "scan",
]
