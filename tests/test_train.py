"""Pairs, losses, heads and the loop, on generated features whose answer is known."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmsearch.encoders.heads import mlp, project, unit_rows
from mmsearch.evaluate import best_ranks, recall_at_k
from mmsearch.train.heads import MlpHead, merged
from mmsearch.train.loop import TrainSettings, fit_head
from mmsearch.train.pairs import Captioned, Pairs, PairsError


def things(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, list[Captioned]]:
    """Features of three pictures a thing, unit vectors of two texts a thing, and who belongs to whom."""
    random = np.random.default_rng(seed)
    kinds = random.standard_normal((count, 24))
    texts = unit_rows((kinds @ random.standard_normal((24, 16))).astype(np.float32).repeat(2, axis=0))
    seen = np.maximum(kinds @ random.standard_normal((24, 40)), 0).repeat(3, axis=0)
    features = (seen + 0.2 * random.standard_normal(seen.shape)).astype(np.float32)
    captioned = [
        Captioned(3 * thing + shot, ((2 * thing, 1.0), (2 * thing + 1, 0.5)), f"thing {thing}")
        for thing in range(count)
        for shot in range(3)
    ]
    return features, texts, captioned


SMALL = TrainSettings(steps=60, batch=64, hidden=32, dropout=0.1, learning_rate=5e-3, warmup_steps=5)


def test_a_head_learns_to_name_pictures_that_it_has_not_seen() -> None:
    features, texts, captioned = things(300)
    pairs = Pairs([features], texts, captioned[:600])  # 200 things; the others are held out
    head = fit_head(pairs, None, SMALL)
    images = project("mlp", features[600::3], head.tensors())  # (100, 16)
    right = np.eye(100, dtype=bool)
    ranks = best_ranks(images @ texts[400::2].T, right)
    assert recall_at_k(ranks, 10) > 0.6  # chance: 0.1


@pytest.mark.slow
def test_the_same_seed_gives_the_same_head_and_another_one_another() -> None:
    features, texts, captioned = things(80)
    pairs = Pairs([features], texts, captioned)
    one, same = (fit_head(pairs, None, SMALL).tensors() for _ in range(2))
    other = fit_head(pairs, None, TrainSettings(**{**vars(SMALL), "seed": 1})).tensors()
    assert all(np.array_equal(one[name], same[name]) for name in one)
    assert not np.array_equal(one["out.weight"], other["out.weight"])


def test_what_is_known_is_not_learned_again() -> None:
    features, texts, captioned = things(100)
    pairs = Pairs([features], texts, captioned)
    known = texts[::2].repeat(3, axis=0)[None]  # every picture has its own text's vector already
    losses: list[float] = []
    fit_head(pairs, known, SMALL, lambda step, loss: losses.append(loss))
    alone: list[float] = []
    fit_head(pairs, None, SMALL, lambda step, loss: alone.append(loss))
    assert losses[0] < alone[0] / 2
    assert len(losses) == SMALL.steps


def test_numpy_and_torch_give_the_same_vectors() -> None:
    features, _, _ = things(30)
    torch.manual_seed(1)
    head = MlpHead(features.mean(axis=0), features.std(axis=0), 12, 7, dropout=0.5).eval()
    with torch.inference_mode():
        expected = head(torch.from_numpy(features)).numpy()
    assert np.allclose(project("mlp", features, head.tensors()), expected, atol=1e-5)


def test_a_merged_head_answers_as_the_mean_of_its_parts() -> None:
    features, _, _ = things(30)
    heads = []
    for seed in range(3):
        torch.manual_seed(seed)
        heads.append(MlpHead(features.mean(axis=0), features.std(axis=0), 12, 7, dropout=0.0).eval())
    tensors = merged(heads, features)
    parts = [mlp(features, head.tensors()) for head in heads]
    mean = sum(part / np.linalg.norm(part, axis=1).mean() for part in parts) / 3
    assert tensors["hidden.weight"].shape == (40, 36)
    assert np.allclose(mlp(features, tensors), mean, atol=1e-5)


def test_a_batch_holds_a_thing_once() -> None:
    features, texts, captioned = things(50)
    for batch in Pairs([features, features + 1], texts, captioned).batches(20, 5, seed=3):
        assert len({*(batch.pictures // 3)}) == 20
        assert np.allclose(batch.features, features[batch.pictures] + batch.views[:, None])
        assert (np.abs(batch.texts - texts[2 * (batch.pictures // 3)]).max(axis=1) < 1e-6).all()  # both texts are one


@given(st.lists(st.floats(0.1, 10), min_size=2, max_size=5))
def test_texts_are_drawn_by_their_weights(weights: list[float]) -> None:
    texts = np.eye(len(weights) + 1, dtype=np.float32)
    said = tuple(enumerate(weights))
    captioned = [Captioned(0, said, "one"), Captioned(1, ((len(weights), 1.0),), "other")]
    pairs = Pairs([np.zeros((2, 3), dtype=np.float32)], texts, captioned)
    drawn = sum(batch.texts[batch.pictures == 0][0] for batch in pairs.batches(2, 400, seed=0))
    shares = np.array(weights) / sum(weights)
    assert np.abs(drawn[: len(weights)] / 400 - shares).max() < 0.13  # five standard deviations of 400 draws


@pytest.mark.parametrize(
    ("captioned", "why"),
    [
        ([Captioned(0, ((0, 1.0),), "one"), Captioned(1, ((0, 1.0),), "one")], "two different ones"),
        ([Captioned(0, ((0, 1.0),), "one"), Captioned(1, (), "other")], "has no text"),
        ([], "two different ones"),
    ],
)
def test_pairs_that_teach_nothing_are_refused(captioned: list[Captioned], why: str) -> None:
    with pytest.raises(PairsError, match=why):
        Pairs([np.zeros((2, 3), dtype=np.float32)], np.eye(2, dtype=np.float32), captioned)
