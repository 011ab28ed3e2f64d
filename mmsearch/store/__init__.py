"""What an index keeps on disk: the SQLite store, which is the truth, and the FAISS files that are derived from it."""
