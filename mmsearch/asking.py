"""What is asked, as a vector in the space of an index: words, pictures, items and vectors, alone or as a sum."""

import contextlib
import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np

from mmsearch.batching import TextBatcher
from mmsearch.embedding import Embedded, embed_pixels, embed_texts, encodable
from mmsearch.encoders.base import FloatArray
from mmsearch.encoders.heads import TrainedHeads
from mmsearch.errors import QueryError
from mmsearch.items import existing
from mmsearch.opened import Opened
from mmsearch.pictures import PictureReader
from mmsearch.query import Picture, Query
from mmsearch.store import queries
from mmsearch.store.queries import QueryCache
from mmsearch.store.reader import Reader
from mmsearch.store.records import Kind
from mmsearch.turns import Turns

SEARCHES_AT_ONCE = 2  # in one index; of 32 clients on two cores, with 1: 121, 2: 122, 4: 100, unbounded: 95 answers/s


class Asking:
    """The queries of one index, from however many threads."""

    def __init__(self, opened: Opened) -> None:
        self._opened = opened
        self._encode_texts = TextBatcher(self._texts_encoded)
        self._asked_before = QueryCache(opened.folder)
        self._turns = Turns(SEARCHES_AT_ONCE)
        self.pictures = PictureReader()

    def close(self) -> None:
        """Give back files, and end the processes that read pictures."""
        self.pictures.close()
        self._asked_before.close()

    @property
    def texts_encoded(self) -> tuple[int, int]:
        """How many texts of queries were encoded so far, and in how many batches."""
        return self._encode_texts.texts, self._encode_texts.batches

    @contextlib.contextmanager
    def asked(self, query: Query) -> Iterator[tuple[Reader, FloatArray, list[str]]]:
        """A snapshot, the query as a vector (dim,) in its space, and the content hashes of the query's pictures."""
        with self._turns.taken():
            self.pictures.get_ready(query.pictures)
            while True:
                with self._opened.there().read() as reader:
                    heads = self._opened.heads_of(reader)
                vector, hashes = self.query_vector(query, heads)
                with self._opened.there().read() as reader:
                    if reader.setting("heads") != (heads and heads.hash):  # changed: the vector lies elsewhere
                        continue
                    yield reader, vector, hashes
                    return

    def query_vector(self, query: Query, heads: TrainedHeads | None) -> tuple[FloatArray, list[str]]:
        """The query as a vector (dim,), and the content hashes of the pictures in it."""
        hashes: list[str] = []

        def encode_pictures(pictures: Sequence[Picture]) -> FloatArray:
            with self._turns.given_up():
                encoder = self._opened.encoder()
                decoded = self.pictures.read(encoder, pictures)
                vectors = embed_pixels(encoder, [one.pixels for one in decoded])
            hashes.extend(one.facts.content_hash for one in decoded)
            return _under(heads, "image", vectors)

        def encode_texts(texts: Sequence[str]) -> FloatArray:
            return self.vectors_of_texts(texts, heads)

        vector = query.vector(encode_texts, encode_pictures, self._vectors_of_items)
        made_with = self._opened.made_with
        if vector.shape != (made_with.dim,):
            raise QueryError(
                f"The vector has {len(vector)} numbers; those of '{made_with.model}' have {made_with.dim}."
            )
        return vector, hashes

    def vectors_of_texts(
        self, texts: Sequence[str], heads: TrainedHeads | None, *, cached_apart: bool = False
    ) -> FloatArray:
        """(n, dim) float32; what was asked before is remembered, and needs no model.

        cached_apart: they are no queries, and not what a vector index should be tuned for.
        """
        texts = [" ".join(unicodedata.normalize("NFC", encodable(text)).split()) for text in texts]
        space = queries.space(self._opened.made_with.fingerprint, None if heads is None else heads.hash)
        if space is None or self._opened.own_encoder:
            return self._encoded_under(texts, heads)
        space += " judged" if cached_apart else ""
        known = self._asked_before.get(space, texts, self._opened.made_with.dim)
        new = [text for text in dict.fromkeys(texts) if text not in known]
        if new:
            encoded = dict(zip(new, self._encoded_under(new, heads), strict=True))
            self._asked_before.put(space, {text: row for text, row in encoded.items() if np.isfinite(row).all()})
            known |= encoded
        return np.stack([known[text] for text in texts])

    def _encoded_under(self, texts: Sequence[str], heads: TrainedHeads | None) -> FloatArray:
        with self._turns.given_up():
            rows, dim = self._encode_texts(texts), self._opened.encoder().dim
        if heads is None:
            return rows[:, :dim]
        return heads.project("text", rows[:, :dim], rows[:, dim:] if rows.shape[1] > dim else rows)

    def _texts_encoded(self, texts: Sequence[str]) -> FloatArray:
        """(n, dim + features) float32: vectors by the model's own heads and, beside them, features if it shows any."""
        embedded = embed_texts(self._opened.encoder(), texts)
        return np.stack(
            [row.vector if row.feature is None else np.concatenate((row.vector, row.feature)) for row in embedded]
        )

    def _vectors_of_items(self, ids: Sequence[str]) -> FloatArray:
        with self._opened.there().read() as reader:
            numbers = [existing(reader, name) for name in ids]
            vectors = reader.vectors(numbers)
        return np.stack([vectors[number] for number in numbers])


def _under(heads: TrainedHeads | None, kind: Kind, embedded: Sequence[Embedded]) -> FloatArray:
    """(n, dim) float32: vectors as other heads make them."""
    vectors = np.stack([row.vector for row in embedded])
    return vectors if heads is None else heads.project(kind, vectors, np.stack([row.learns_from for row in embedded]))
