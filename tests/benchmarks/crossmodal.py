"""Vectors made to be like CLIP's, at any number: two modalities, each in a cone of its own, over one latent space.

Latent rows have 96 dimensions with a spectrum that falls as i^-0.5 and lie about 20,000 fine centres (sizes by Zipf's
law, exponent 0.6) about 200 coarse ones. A random matrix lifts them to the width of a vector; the modality's own mean
and noise are added, and the length is made 1. A text query is a noisy copy of an item's latent row, with the mean of
texts. The shares below are chosen so that the mean cosines are near those of CLIP on photographs with captions: image
and image 0.47, text and image 0.07 where they do not belong together and 0.38 where they do.
"""

from collections.abc import Iterator

import numpy as np

from mmsearch.store.records import FloatArray, IntArray

LATENT, COARSE, FINE = 96, 200, 20_000
SHARES = {"coarse": 0.28, "fine": 0.60, "own": 0.12}  # of a latent row's variance
IMAGE = {"mean": 0.47, "noise": 0.06}  # of the squared length; the latent row has the rest
TEXT = {"mean": 0.40, "noise": 0.15}
LIKENESS = 0.69  # correlation of a text's latent row with its image's
MEANS = 0.16  # cosine of the modalities' means
BLOCK = 50_000  # rows that are made at once


class Workload:
    """`count` images and any number of queries, the same for the same seed whatever block is asked for first."""

    def __init__(self, count: int, dim: int = 512, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.count, self.dim, self._seed = count, dim, seed
        self._spectrum = np.arange(1, LATENT + 1, dtype=np.float32) ** -0.5
        self._spectrum /= np.linalg.norm(self._spectrum)
        self._lift = rng.standard_normal((LATENT, dim), np.float32) / np.sqrt(np.float32(dim))
        self._coarse = self._rows(rng, COARSE)
        self._fine = self._rows(rng, FINE)
        self._coarse_of = rng.integers(0, COARSE, FINE)
        sizes = np.arange(1, FINE + 1) ** -0.6
        self._sizes = sizes / sizes.sum()
        image, other = unit(rng.standard_normal((2, dim), np.float32))
        other = unit((other - (other @ image) * image)[None])[0]
        self._image_mean = image * np.float32(IMAGE["mean"] ** 0.5)
        self._text_mean = (MEANS * image + (1 - MEANS**2) ** 0.5 * other) * np.float32(TEXT["mean"] ** 0.5)

    def images(self) -> Iterator[FloatArray]:
        """(<= 50,000, dim) float32 rows of length 1, block by block; item n is row n of them all."""
        for start in range(0, self.count, BLOCK):
            rng = np.random.default_rng([self._seed, 1, start])
            latent = self._latent(rng, min(BLOCK, self.count - start))
            yield self._seen(latent, rng)

    def image_queries(self, count: int) -> FloatArray:
        """(count, dim): images that are not in the index, drawn as those in it."""
        rng = np.random.default_rng([self._seed, 2])
        return self._seen(self._latent(rng, count), rng)

    def text_queries(self, count: int) -> tuple[FloatArray, IntArray]:
        """(count, dim) texts, and the item (count,) that each belongs to; at even distances over the items."""
        items = np.linspace(0, self.count - 1, count).astype(np.int64)
        parts = []
        for start in range(0, self.count, BLOCK):
            here = items[(items >= start) & (items < start + BLOCK)] - start
            if len(here):
                rng = np.random.default_rng([self._seed, 1, start])
                parts.append(self._latent(rng, min(BLOCK, self.count - start))[here])
        rng = np.random.default_rng([self._seed, 3])
        latent = LIKENESS * np.concatenate(parts) + (1 - LIKENESS**2) ** 0.5 * self._rows(rng, count)
        return self._placed(latent, self._text_mean, TEXT, rng), items

    def _latent(self, rng: np.random.Generator, count: int) -> FloatArray:
        fine = rng.choice(FINE, count, p=self._sizes)
        weights = {name: np.float32(share**0.5) for name, share in SHARES.items()}
        latent: FloatArray = (
            weights["coarse"] * self._coarse[self._coarse_of[fine]]
            + weights["fine"] * self._fine[fine]
            + weights["own"] * self._rows(rng, count)
        )
        return latent  # (count, 96)

    def _rows(self, rng: np.random.Generator, count: int) -> FloatArray:
        rows: FloatArray = rng.standard_normal((count, LATENT), np.float32) * self._spectrum
        return rows

    def _seen(self, latent: FloatArray, rng: np.random.Generator) -> FloatArray:
        return self._placed(latent, self._image_mean, IMAGE, rng)

    def _placed(
        self, latent: FloatArray, mean: FloatArray, shares: dict[str, float], rng: np.random.Generator
    ) -> FloatArray:
        lifted = latent @ self._lift * np.float32((1 - shares["mean"] - shares["noise"]) ** 0.5)
        noise = rng.standard_normal(lifted.shape, np.float32) * np.float32((shares["noise"] / self.dim) ** 0.5)
        return unit(lifted + mean + noise)


def unit(rows: FloatArray) -> FloatArray:
    """Every row scaled to length 1."""
    scaled: FloatArray = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return scaled


def statistics(workload: Workload) -> dict[str, float]:
    """Mean cosines: of two images, of a text and an image that do not belong together, and of two that do."""
    images = np.concatenate([block for _, block in zip(range(1), workload.images(), strict=False)])
    texts, items = workload.text_queries(2_000)
    texts, items = texts[items < len(images)], items[items < len(images)]
    some = images[np.linspace(0, len(images) - 1, 1_000).astype(int)]
    between = some @ some.T
    return {
        "image and image": float((between.sum() - np.trace(between)) / (between.size - len(some))),
        "text and another image": float((texts @ some.T).mean()),
        "text and its image": float((texts * images[items]).sum(axis=1).mean()),
    }
