"""Pictures and texts -> vectors, by whichever encoder an index has.

A bundle shows its towers' outputs, which are kept so that other heads can be applied to them later; an encoder of the
user's own gives vectors alone, which are checked here, since nothing else stands between them and the store.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

from mmsearch.encoders.base import Encoder, FeatureEncoder, FloatArray, PixelArray
from mmsearch.encoders.bundle import FOR_A_GPU, Bundle
from mmsearch.encoders.preprocess import PixelSpec
from mmsearch.errors import ModelError
from mmsearch.facts import Decoded

if TYPE_CHECKING:
    from mmsearch.decoding import Skip

Thing = TypeVar("Thing")

PICTURES_AT_ONCE = 16
TEXTS_AT_ONCE = 64
# Pictures: `lite` takes 0.9 ms of a core for one of 16, most of it to read its heads, and 0.4 for one of 64.
PROJECTED_AT_ONCE = 64
WAIT_S = 1.0  # the longest that pictures wait for as many, so that a slow tower's are written and told of as they come

# For an encoder that does not say what it reads
PLAIN_PIXELS = PixelSpec(512, 512, resize="within")  # more than any common one needs
PLAIN_WORDS = 60  # of a passage


class Embedded(NamedTuple):
    """What an encoder makes of one picture or text."""

    vector: FloatArray  # (dim,) of length 1
    feature: FloatArray | None  # (features,) as the tower gave it, None where the encoder shows none

    @property
    def learns_from(self) -> FloatArray:
        """What trained heads read: the feature, or the vector of an encoder that shows none."""
        return self.vector if self.feature is None else self.feature

    @property
    def usable(self) -> bool:
        """Whether there is a direction to compare; not where the encoder gave zeros, infinity or NaN."""
        return bool(np.isfinite(self.vector).all())


def pixels_of(encoder: Encoder) -> PixelSpec:
    """The pixels that an encoder reads."""
    return encoder.pixels if isinstance(encoder, FeatureEncoder) else PLAIN_PIXELS


def encodable(text: str) -> str:
    """Text without lone surrogates, as in a file name that is not UTF-8: no tokenizer and no database takes them."""
    return text.encode("utf-8", "replace").decode("utf-8")


def fits(encoder: Encoder) -> Callable[[str], bool]:
    """Whether a text is read to its end."""
    if isinstance(encoder, FeatureEncoder):
        return lambda text: encoder.count_tokens(text) <= encoder.max_tokens
    return lambda text: len(text.split()) <= PLAIN_WORDS


def embed_pixels(encoder: Encoder, pixels: Sequence[PixelArray]) -> list[Embedded]:
    """Pictures, as `pixels_of` the encoder, in one batch."""
    if isinstance(encoder, FeatureEncoder):
        return _projected(encoder, encoder.image_features(np.stack(pixels)))
    from PIL import Image  # here: a search by words has no use for it

    pictures = [Image.fromarray(picture) for picture in pixels]
    return [Embedded(row, None) for row in _unit_rows(encoder, encoder.encode_images(pictures), len(pictures))]


def embed_batches(
    encoder: Encoder,
    batches: Iterable[Sequence[Thing]],
    pixels_of_one: Callable[[Thing], PixelArray],
    *,
    get_ready: Callable[[], object] | None = None,
) -> Iterator[tuple[Sequence[Thing], list[Embedded]]]:
    """Batches, or several together, with what the encoder makes of their pictures.

    The towers of a bundle read the next batch meanwhile, in another thread; an encoder of the user's own may want to
    stay in the one that it was made in. get_ready: called in that thread before there is a batch; where it fails, so
    will the first batch, which says it.
    """
    if not isinstance(encoder, FeatureEncoder):
        for batch in batches:
            yield batch, embed_pixels(encoder, [pixels_of_one(one) for one in batch])
        return
    from concurrent.futures import Future, ThreadPoolExecutor

    from threadpoolctl import threadpool_limits

    inside: tuple[Sequence[Thing], Future[FloatArray]] | None = None  # the tower
    read: list[tuple[Sequence[Thing], FloatArray]] = []
    # Projecting is too little work for several threads: they would wait for each other, and for a core
    with ThreadPoolExecutor(1) as tower, threadpool_limits(1, user_api="blas"):
        if get_ready is not None:
            tower.submit(get_ready)
        stages: deque[PixelArray | None] = deque((None, None))  # one is read while the other is filled
        handed_on = time.monotonic()
        try:
            for batch in batches:
                pixels = _stacked([pixels_of_one(one) for one in batch], stages.popleft())
                stages.append(pixels)
                reading = tower.submit(encoder.image_features, pixels)
                if inside is not None:
                    read.append((inside[0], inside[1].result()))
                inside = batch, reading
                if sum(len(batch) for batch, _ in read) >= PROJECTED_AT_ONCE or time.monotonic() - handed_on > WAIT_S:
                    yield from _projected_together(encoder, read)
                    read, handed_on = [], time.monotonic()
            if inside is not None:
                read.append((inside[0], inside[1].result()))
        except Exception:  # a tower's, or of where the batches come from: what was read before is not lost
            yield from _projected_together(encoder, read)
            raise
        yield from _projected_together(encoder, read)


def _projected_together(
    encoder: FeatureEncoder, read: Sequence[tuple[Sequence[Thing], FloatArray]]
) -> Iterator[tuple[Sequence[Thing], list[Embedded]]]:
    if read:
        things = [thing for batch, _ in read for thing in batch]
        yield things, _projected(encoder, np.concatenate([features for _, features in read]))


def _stacked(pixels: Sequence[PixelArray], stage: PixelArray | None) -> PixelArray:
    """np.stack, in the memory of an earlier batch as large: new memory for 256 pictures takes longer than they do."""
    return np.stack(pixels, out=stage if stage is not None and len(stage) == len(pixels) else None)


def embed_files(
    encoder: Encoder, paths: Collection[str], skipped: "Callable[[Skip], None]", *, timeout_s: float = 60.0
) -> Iterator[tuple[Sequence[tuple[str, Decoded]], list[Embedded]]]:
    """Batches of pictures with their paths and what the encoder makes of them, as they get ready.

    skipped: gets what there is no picture of. A GPU, where one is there and so many pictures are worth it, is started;
    all cores decode then. Raises ModelError.
    """
    from mmsearch.decoding import DecodePool, default_workers  # here: a search by words has no use for it

    on_gpu = isinstance(encoder, Bundle) and encoder.uses_gpu_for(len(paths))
    at_once = FOR_A_GPU if on_gpu else PICTURES_AT_ONCE
    get_ready: Callable[[], object] | None = None
    # Not for files alone that nobody may read, which every run tries again
    if isinstance(encoder, Bundle) and not on_gpu and any(os.access(path, os.R_OK) for path in paths):
        get_ready = partial(encoder.get_ready, len(paths))
    with DecodePool(
        pixels_of(encoder), workers=default_workers(alone=on_gpu), timeout_s=timeout_s, lookahead=2 * at_once
    ) as pool:
        batches = pool.batches(paths, at_once, skipped)
        yield from embed_batches(encoder, batches, lambda one: one[1].pixels, get_ready=get_ready)


def _projected(encoder: FeatureEncoder, features: FloatArray) -> list[Embedded]:
    return [Embedded(*row) for row in zip(encoder.project_images(features), features, strict=True)]


def embed_texts(encoder: Encoder, texts: Sequence[str]) -> list[Embedded]:
    """Texts, in batches."""
    embedded: list[Embedded] = []
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        part = [encodable(text) for text in texts[start : start + TEXTS_AT_ONCE]]
        if isinstance(encoder, FeatureEncoder):
            features = encoder.text_features(part)
            embedded += [Embedded(*row) for row in zip(encoder.project_texts(features), features, strict=True)]
        else:
            embedded += [Embedded(row, None) for row in _unit_rows(encoder, encoder.encode_texts(part), len(part))]
    return embedded


def _unit_rows(encoder: Encoder, rows: object, count: int) -> FloatArray:
    """What an encoder of the user's gave, checked and brought to length 1. Raises ModelError."""
    array = np.asarray(rows, np.float32)
    if array.shape != (count, encoder.dim):
        raise ModelError(
            f"The encoder '{encoder.name}' gave an array of shape {array.shape} where ({count}, {encoder.dim}) was due."
        )
    with np.errstate(invalid="ignore", divide="ignore"):
        unit: FloatArray = (array / np.linalg.norm(array, axis=1, keepdims=True)).astype(np.float32)
    return unit
