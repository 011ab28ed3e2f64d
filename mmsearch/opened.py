"""An index on disk and the model that belongs to it: opened, made, and refused to any other model."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from mmsearch.encoders.base import Encoder, FeatureEncoder
from mmsearch.encoders.bundle import INT8, Device, Precision
from mmsearch.encoders.heads import TrainedHeads
from mmsearch.errors import ModelMismatchError, SourceError, UsageError
from mmsearch.locations import option_for
from mmsearch.store.metadata import Store
from mmsearch.store.reader import Reader
from mmsearch.store.vectors import VectorIndex
from mmsearch.store.writer import Writer


class MadeWith(NamedTuple):
    """The model of an index on disk; it stays."""

    model: str
    fingerprint: str | None  # None for an encoder that has none
    dim: int


class Opened:
    """The store of an index, its vector index, its encoder and its heads, each opened when it is first needed.

    The parameters are those of `Index`.
    """

    def __init__(
        self,
        folder: Path,
        model: str | None,
        encoder: Encoder | None,
        precision: Precision,
        device: Device,
        notify: Callable[[str], None],
    ) -> None:
        self.folder = folder
        self.own_encoder = encoder is not None
        self._model = model
        self._precision = precision
        self._device = device
        self._model_source: str | None = None  # where a model lies that has no name to load it by
        self._encoder = encoder
        self.notify = notify
        self._opening = threading.RLock()  # held while the model or the index is taken into use
        self._made_with: MadeWith | None = None
        self._store: Store | None = None
        self._vectors: VectorIndex | None = None
        self._trained_heads: TrainedHeads | None = None  # those that were last asked for
        if Store.exists(self.folder):
            self._attach(Store(self.folder))

    def close(self) -> None:
        """Give back files and connections; they are opened again when they are needed."""
        store, self._store = self._store, None  # what is there later is perhaps another index, of another model
        if store is not None:
            store.close()

    @property
    def exists(self) -> bool:
        """Whether the index is on disk yet."""
        return self._store is not None or Store.exists(self.folder)

    def encoder(self) -> Encoder:
        """The encoder of the index, loaded at the first call."""
        with self._opening:
            if self._encoder is None:
                from mmsearch.encoders.catalog import load_encoder

                encoder = load_encoder(
                    self._model_source or self._model,
                    progress=self.notify,
                    precision=self._precision,
                    device=self._device,
                )
                if self._made_with is not None:
                    self._check(self._made_with, encoder)
                self._encoder = encoder
            return self._encoder

    def _attach(self, store: Store) -> Store:
        """Take an index on disk into use, if it was made with the model that is asked for."""
        try:
            made_with = self._agreed(store)
            if self._encoder is not None:
                self._check(made_with, self._encoder)
        except BaseException:
            store.close()
            raise
        self._made_with = made_with
        self._model = made_with.model
        self._precision = _precision(made_with.model)
        self._vectors, self._store = VectorIndex(store), store  # the store last: whoever sees it sees the other too
        return store

    def _agreed(self, store: Store) -> MadeWith:
        """The model that an index was made with, if it is the one asked for."""
        with store.read() as reader:
            made_with = reader.setting("model") or ""
            fingerprint, dim = reader.setting("fingerprint"), int(reader.setting("dim") or 0)
            own = reader.setting("encoder") == "own"
            source = reader.setting("model_source")
        if own and not self.own_encoder:
            raise ModelMismatchError(
                f"{self.folder} was made with an encoder of your own, '{made_with}'. Open it with "
                "Index(..., encoder=...) and that encoder."
            )
        if not self.own_encoder and self._model not in (None, "auto", made_with):
            from mmsearch.encoders.catalog import resolve

            if resolve(self._model) not in (made_with, made_with.removesuffix(INT8)):
                raise ModelMismatchError(
                    f"{self.folder} was made with '{made_with}'; you asked for '{self._model}'. Search it with its own "
                    "model, or build a new index."
                )
        if not self.own_encoder and self._precision not in ("auto", _precision(made_with)):
            raise ModelMismatchError(
                f"{self.folder} was made with '{made_with}' in {_precision(made_with)}; you asked for "
                f"{self._precision}. Leave out --precision, or build a new index."
            )
        self._model_source = source
        return MadeWith(made_with, fingerprint, dim)

    def _check(self, made_with: MadeWith, encoder: Encoder) -> None:
        """Refuse a model that the index was not made with: its answers would mean nothing."""
        if self.own_encoder and encoder.name != made_with.model:
            raise ModelMismatchError(
                f"{self.folder} was made with '{made_with.model}'; this encoder is '{encoder.name}'. Use the one it "
                "was made with, or build a new index."
            )
        if (made_with.dim, made_with.fingerprint) != (encoder.dim, _fingerprint(encoder)):
            raise ModelMismatchError(
                f"{self.folder} was made with another version of '{made_with.model}'. Build a new index with this one, "
                "or install the version of mmsearch or of the weights that made it."
            )

    def made(self) -> Store:
        """The store, made with the encoder's name and hash in it if it is new."""
        with self._opening:
            if not self.exists:
                encoder = self.encoder()
                settings = {
                    "model": encoder.name,
                    "fingerprint": _fingerprint(encoder),
                    "dim": str(encoder.dim),
                    "encoder": "own" if self.own_encoder else "bundle",
                }
                if self._model and os.path.isdir(folder := os.path.expanduser(self._model)):
                    settings["model_source"] = os.path.abspath(folder)
                self._attach(Store.create(self.folder, settings))
            return self.there()

    def there(self) -> Store:
        """The store of an index that is on disk."""
        store = self._store
        if store is None:
            with self._opening:
                if self.folder.is_file():
                    raise UsageError(f"{self.folder} is a file; an index is a folder.")
                if not self.exists:
                    raise SourceError(
                        f"There is no index in {self.folder} yet. "
                        f"Make one with: mmsearch index FOLDER{option_for(self.folder)}"
                    )
                if (store := self._store) is None:
                    store = self._attach(Store(self.folder))
        return store

    @property
    def vector_index(self) -> VectorIndex:
        """That of an index on disk."""
        self.there()
        assert self._vectors is not None
        return self._vectors

    @property
    def made_with(self) -> MadeWith:
        """The model of an index on disk."""
        self.there()
        assert self._made_with is not None
        return self._made_with

    @contextlib.contextmanager
    def writing(self, store: Store, wait_s: float | None) -> Iterator[Writer]:
        """The writer, which gives what it writes vectors by the heads in use."""
        with store.write(wait_s=wait_s) as writer:
            heads = self.heads_of(writer)
            writer.project = None if heads is None else heads.project
            yield writer

    def heads_of(self, reader: Reader) -> TrainedHeads | None:
        """The heads in use in a snapshot; the same object as long as they are the same."""
        hash_ = reader.setting("heads")
        return None if hash_ is None else self.trained(reader, hash_)

    def trained(self, reader: Reader, hash_: str) -> TrainedHeads:
        """Heads that were trained for this index, by their hash."""
        with self._opening:
            if self._trained_heads is None or self._trained_heads.hash != hash_:
                row = next(row for row in reader.heads() if row.hash == hash_)
                tensors = reader.head_tensors(hash_) or b""
                self._trained_heads = TrainedHeads.from_bytes(row.name, hash_, tensors)
            return self._trained_heads


def _fingerprint(encoder: Encoder) -> str:
    return encoder.fingerprint if isinstance(encoder, FeatureEncoder) else ""


def _precision(model: str) -> Precision:
    return "int8" if model.endswith(INT8) else "fp32"
