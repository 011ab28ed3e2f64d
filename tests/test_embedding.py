"""Batches of pictures come out with their own vectors, in their order, however they are put together."""

import math

import numpy as np
import pytest

from mmsearch import embedding, load_encoder
from mmsearch.embedding import PROJECTED_AT_ONCE, embed_batches, embed_pixels
from mmsearch.encoders.base import FeatureEncoder, PixelArray


@pytest.fixture(scope="module")
def lite() -> FeatureEncoder:
    encoder = load_encoder("lite")
    assert isinstance(encoder, FeatureEncoder)
    return encoder


def pictures_for(encoder: FeatureEncoder, count: int) -> list[PixelArray]:
    """Each of a colour of its own, with a little grain."""
    draw = np.random.default_rng(0)
    shape = (encoder.pixels.height, encoder.pixels.width, 3)
    return [
        (draw.integers(0, 200, 3) + draw.integers(0, 56, shape)).astype(np.uint8)  # (height, width, 3)
        for _ in range(count)
    ]


def test_each_picture_gets_its_own_vector_and_many_are_projected_at_once(
    lite: FeatureEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding, "WAIT_S", math.inf)
    pictures = pictures_for(lite, 3 * PROJECTED_AT_ONCE - 5)
    batches = [pictures[start : start + 16] for start in range(0, len(pictures), 16)]
    found = list(embed_batches(lite, batches, lambda picture: picture))
    assert [len(things) for things, _ in found] == [PROJECTED_AT_ONCE, PROJECTED_AT_ONCE, PROJECTED_AT_ONCE - 5]
    assert [id(picture) for things, _ in found for picture in things] == [id(picture) for picture in pictures]
    vectors = np.stack([row.vector for _, rows in found for row in rows])
    alone = np.stack([row.vector for batch in batches for row in embed_pixels(lite, batch)])
    np.testing.assert_allclose(vectors, alone, atol=1e-5)


def test_pictures_of_a_slow_tower_are_handed_on_as_they_come(
    lite: FeatureEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding, "WAIT_S", 0.0)
    pictures = pictures_for(lite, 7)
    found = embed_batches(lite, [pictures[:3], pictures[3:5], pictures[5:]], lambda picture: picture)
    assert [len(things) for things, _ in found] == [3, 2, 2]


def test_what_was_read_before_a_tower_fails_is_handed_on(lite: FeatureEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "WAIT_S", math.inf)
    pictures = pictures_for(lite, 6)
    odd = np.zeros((3, 5, 3), np.uint8)  # no size of lite's
    found = embed_batches(lite, [pictures[:3], pictures[3:], [odd, odd], pictures], lambda picture: picture)
    things, rows = next(found)
    assert len(things) == len(rows) == 6
    with pytest.raises(Exception, match="pixels"):
        next(found)


def test_without_a_batch_there_is_nothing(lite: FeatureEncoder) -> None:
    assert list(embed_batches(lite, [], lambda picture: picture)) == []
