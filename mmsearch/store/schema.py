"""The tables of index.db, and how an older one becomes a newer one.

`PRAGMA user_version` holds the version that the tables have, so that a search can tell at the cost of one pragma that
it may read them; sqlite-utils keeps which migrations ran, and runs the missing ones when a writer opens the index.
"""

import sqlite3
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlite_utils import Database

VERSION = 4


def migrate(connection: sqlite3.Connection) -> None:
    """Bring the tables to VERSION, each step in a transaction of its own; no step runs twice."""
    from sqlite_utils import Database, Migrations  # here: it imports pandas where that is installed, 0.5 s

    migrations = Migrations("mmsearch")
    for step in STEPS:
        migrations(name=step.__name__)(lambda db, step=step: step(db))
    migrations.apply(Database(connection))
    connection.execute(f"PRAGMA user_version = {VERSION}")


def create_tables(db: "Database") -> None:
    """Version 1."""
    for statement in TABLES:
        db.execute(statement)


def speed_up_large_indexes(db: "Database") -> None:
    """Version 2."""
    for statement in LARGE:
        db.execute(statement)


def make_room_for_training(db: "Database") -> None:
    """Version 3."""
    for statement in TRAINED:
        db.execute(statement)


def keep_moments_and_checksums(db: "Database") -> None:
    """Version 4. The moments are filled in by the first transaction, as those of any vectors that they lack."""
    for statement in MEASURED:
        db.execute(statement)


def know_folders_and_reasons(db: "Database") -> None:
    """Version 4."""
    for statement in FOLDERS:
        db.execute(statement)


STEPS: tuple[Callable[..., None], ...] = (
    create_tables,
    speed_up_large_indexes,
    make_room_for_training,
    keep_moments_and_checksums,
    know_folders_and_reasons,
)

TABLES = (
    """CREATE TABLE settings (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID""",
    # Bumped by every write that changes an answer: what a reader keeps in memory is keyed by it.
    """INSERT INTO settings VALUES ('revision', '0')""",
    # A path is TEXT for people and tools; where its bytes are not UTF-8 they are kept exactly in path_bytes beside it.
    """CREATE TABLE roots (
        id INTEGER PRIMARY KEY,
        path TEXT NOT NULL,
        path_bytes BLOB,
        options TEXT NOT NULL,
        updated_at TEXT)""",
    """CREATE UNIQUE INDEX roots_path ON roots (path, ifnull(path_bytes, x''))""",
    """CREATE TABLE files (
        id INTEGER PRIMARY KEY,
        path TEXT NOT NULL,
        path_bytes BLOB,
        kind TEXT NOT NULL CHECK (kind IN ('image', 'text', 'caption', 'captions')),
        size_bytes INTEGER NOT NULL,
        modified_ns INTEGER,
        content_hash TEXT,
        skipped TEXT,
        indexed_at TEXT NOT NULL)""",
    """CREATE UNIQUE INDEX files_path ON files (path, ifnull(path_bytes, x''))""",
    """CREATE INDEX files_size ON files (size_bytes)""",
    """CREATE INDEX files_skipped ON files (path) WHERE skipped IS NOT NULL""",
    """CREATE TABLE items (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        name TEXT UNIQUE,
        kind TEXT NOT NULL CHECK (kind IN ('image', 'text')),
        file_id INTEGER REFERENCES files (id) ON DELETE CASCADE,
        caption_of INTEGER REFERENCES items (id) ON DELETE CASCADE,
        text TEXT,
        line INTEGER,
        width INTEGER,
        height INTEGER,
        format TEXT,
        taken_at TEXT,
        camera TEXT,
        latitude_deg REAL,
        longitude_deg REAL,
        content_hash TEXT,
        facts TEXT,
        added_at TEXT NOT NULL)""",
    """CREATE INDEX items_file ON items (file_id)""",
    """CREATE INDEX items_caption_of ON items (caption_of) WHERE caption_of IS NOT NULL""",
    """CREATE INDEX items_content_hash ON items (content_hash) WHERE content_hash IS NOT NULL""",
    """CREATE INDEX items_taken_at ON items (taken_at) WHERE taken_at IS NOT NULL""",
    # A row is never changed, only replaced under a new id: whoever has read up to an id need not look back.
    # vector: (dim,) float16, length 1. feature: (features,) float16, as the tower gave it; NULL without a head apart.
    """CREATE TABLE vectors (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        item_id INTEGER NOT NULL UNIQUE REFERENCES items (id) ON DELETE CASCADE,
        kind TEXT NOT NULL CHECK (kind IN ('image', 'text')),
        vector BLOB NOT NULL,
        feature BLOB)""",
    """CREATE INDEX vectors_kind ON vectors (kind, id)""",
    # Deleted vectors that a segment, or a reader's memory, may still hold.
    """CREATE TABLE dead_vectors (id INTEGER PRIMARY KEY, kind TEXT NOT NULL)""",
    """CREATE TRIGGER vectors_deleted AFTER DELETE ON vectors BEGIN
        INSERT INTO dead_vectors VALUES (old.id, old.kind);
    END""",
    # FAISS files: each holds the vectors of one kind with after_id < id <= through_id that lived when it was built.
    """CREATE TABLE segments (
        file TEXT PRIMARY KEY,
        kind TEXT NOT NULL,
        after_id INTEGER NOT NULL,
        through_id INTEGER NOT NULL,
        count INTEGER NOT NULL,
        size_bytes INTEGER NOT NULL)""",
    # words: captions or the passage; place: the words of file and folder names.
    """CREATE VIRTUAL TABLE keywords USING fts5 (words, place, tokenize = 'porter unicode61 remove_diacritics 2')""",
    """CREATE TRIGGER items_deleted AFTER DELETE ON items BEGIN
        DELETE FROM keywords WHERE rowid = old.id;
    END""",
)

LARGE = (
    # JSON: how a segment's cells are searched, as measured when it was built; NULL where every row is read.
    """ALTER TABLE segments ADD COLUMN cells TEXT""",
    # From the items that pass a filter to their vectors without touching the vectors themselves
    """CREATE INDEX vectors_item ON vectors (item_id, kind)""",
    """CREATE INDEX items_place ON items (latitude_deg, longitude_deg) WHERE latitude_deg IS NOT NULL""",
    # The users' own facts by their values, kept by the triggers below; NULL is no value.
    """CREATE TABLE item_facts (
        key TEXT NOT NULL,
        value NOT NULL,
        item_id INTEGER NOT NULL,
        PRIMARY KEY (key, value, item_id)) WITHOUT ROWID""",
    """INSERT OR IGNORE INTO item_facts
        SELECT j.key, j.value, i.id FROM items i, json_each(i.facts) j
        WHERE i.facts IS NOT NULL AND j.value IS NOT NULL""",
    """CREATE TRIGGER facts_inserted AFTER INSERT ON items WHEN new.facts IS NOT NULL BEGIN
        INSERT OR IGNORE INTO item_facts
            SELECT key, value, new.id FROM json_each(new.facts) WHERE value IS NOT NULL;
    END""",
    """CREATE TRIGGER facts_deleted AFTER DELETE ON items WHEN old.facts IS NOT NULL BEGIN
        DELETE FROM item_facts WHERE item_id = old.id AND (key, value) IN (SELECT key, value FROM json_each(old.facts));
    END""",
    """CREATE TRIGGER facts_changed AFTER UPDATE OF facts ON items BEGIN
        DELETE FROM item_facts WHERE item_id = old.id AND (key, value) IN (SELECT key, value FROM json_each(old.facts));
        INSERT OR IGNORE INTO item_facts
            SELECT key, value, new.id FROM json_each(new.facts) WHERE value IS NOT NULL;
    END""",
)

TRAINED = (
    # Projection heads that were trained for this index. tensors: safetensors. report: JSON, what was measured then.
    # The setting 'heads' holds the hash of those in use; without it, the vectors are those of the model's own heads.
    """CREATE TABLE heads (
        name TEXT PRIMARY KEY,
        hash TEXT NOT NULL,
        tensors BLOB NOT NULL,
        report TEXT NOT NULL,
        made_at TEXT NOT NULL)""",
    # vector: (dim,) float16 of length 1, of every row of `vectors` by the heads in use; empty where there are none.
    """CREATE TABLE projected (id INTEGER PRIMARY KEY, vector BLOB NOT NULL)""",
    """CREATE TRIGGER projected_deleted AFTER DELETE ON vectors BEGIN
        DELETE FROM projected WHERE id = old.id;
    END""",
    # Judgements: does this item answer these words?
    """CREATE TABLE feedback (
        query TEXT NOT NULL,
        item_id INTEGER NOT NULL REFERENCES items (id) ON DELETE CASCADE,
        match INTEGER NOT NULL CHECK (match IN (0, 1)),
        added_at TEXT NOT NULL,
        PRIMARY KEY (query, item_id)) WITHOUT ROWID""",
    """CREATE INDEX feedback_item ON feedback (item_id)""",
    # What was encoded for training alone and is no item, by the hash of its content, so that it is done once.
    """CREATE TABLE encoded (
        kind TEXT NOT NULL CHECK (kind IN ('image', 'text')),
        content_hash TEXT NOT NULL,
        vector BLOB NOT NULL,
        feature BLOB,
        PRIMARY KEY (kind, content_hash)) WITHOUT ROWID""",
)

MEASURED = (
    # By what a segment's file is checked before FAISS reads it; NULL: it was written before there were checksums.
    """ALTER TABLE segments ADD COLUMN checksum INTEGER""",
    # Of all vectors of a kind up to an id, by the heads in use: their sum (dim,) and the sum of their products with
    # themselves (dim, dim), float64 on a grid (moments.py); none where there are few vectors.
    """CREATE TABLE moments (
        kind TEXT PRIMARY KEY,
        through_id INTEGER NOT NULL,
        count INTEGER NOT NULL,
        sums BLOB NOT NULL,
        products BLOB NOT NULL)""",
    # Vectors that the moments hold, and that were deleted since.
    """CREATE TABLE lost_vectors (id INTEGER PRIMARY KEY, kind TEXT NOT NULL, vector BLOB NOT NULL)""",
    """CREATE INDEX lost_vectors_kind ON lost_vectors (kind)""",
    # Before: the vector by the heads in use goes by a trigger of its own after the deletion
    """CREATE TRIGGER vectors_lost BEFORE DELETE ON vectors
       WHEN old.id <= (SELECT through_id FROM moments WHERE kind = old.kind) BEGIN
        INSERT INTO lost_vectors
            VALUES (old.id, old.kind, ifnull((SELECT vector FROM projected WHERE id = old.id), old.vector));
    END""",
)

FOLDERS = (
    # Of a file that was left out: which version of the readers gave the reason, and how often it broke its decoder.
    """ALTER TABLE files ADD COLUMN reader TEXT""",
    """ALTER TABLE files ADD COLUMN tries INTEGER NOT NULL DEFAULT 0""",
    # 1: kept, although it was not found, since its folder was away
    """ALTER TABLE files ADD COLUMN away INTEGER NOT NULL DEFAULT 0""",
    """CREATE INDEX files_away ON files (path) WHERE away""",
    # Folders from which there are files. identity: its file system and its number in that, when it was last read.
    """CREATE TABLE folders (path TEXT NOT NULL, path_bytes BLOB, identity TEXT, away INTEGER NOT NULL DEFAULT 0)""",
    """CREATE UNIQUE INDEX folders_path ON folders (path, ifnull(path_bytes, x''))""",
)
