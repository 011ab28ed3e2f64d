"""The first hits of a search, read once more: the fusion encoder sees each picture together with the words.

A cosine compares two summaries; the fusion encoder compares a picture's parts with words. It costs a picture's decoding
and encoding for each hit, so it orders the first hits alone, and what is behind them stays as it was.
"""

from collections.abc import Sequence

import numpy as np

from mmsearch.encoders.base import Encoder
from mmsearch.encoders.joint import fused_of
from mmsearch.errors import UsageError
from mmsearch.search import Hit

RERANKED = 50  # hits
AT_ONCE = 16  # pictures


def reranked(encoder: Encoder, words: str, hits: Sequence[Hit]) -> list[Hit]:
    """The hits with those among the first 50 that are readable pictures in the order of how well they match the words.

    Scores stay the cosines that they were. Passages, and pictures that cannot be read, keep their places. Raises
    UsageError where the query has no words, or the model no fusion encoder that orders held-out pairs better than the
    cosine does.
    """
    fused = fused_of(encoder)
    if fused is None or not fused.matches:
        raise UsageError(
            f"'{encoder.name}' has no fusion encoder to rerank with. Train one: mmsearch train encoder PAIRS "
            "--fusion cross_attention --objective info_nce,matching"
        )
    if fused.worth is None:
        raise UsageError(
            f"Whether the fusion encoder of '{encoder.name}' orders better than the search does was never measured: it "
            "was trained with too few held-out pairs. Search without --rerank, or train it with more pairs."
        )
    if not fused.worth.reranks:
        raise UsageError(
            f"The fusion encoder of '{encoder.name}' orders held-out pictures no better than the search does (mean "
            f"reciprocal rank {fused.worth.mrr_reranked:.3f} against {fused.worth.mrr_cosine:.3f}). Search without "
            "--rerank, or train it longer."
        )
    if not words.strip():
        raise UsageError("Reranking reads pictures together with words; this query has none.")
    from mmsearch.decoding import DecodePool, Skip  # here: a search without has no use for them

    paths = [hit.path for hit in hits[:RERANKED] if hit.kind == "image" and hit.path is not None]
    with DecodePool(fused.pixels) as pool:
        pixels = {path: decoded.pixels for path, decoded in pool.decode(paths) if not isinstance(decoded, Skip)}
    places = [place for place, hit in enumerate(hits[:RERANKED]) if hit.path in pixels and hit.kind == "image"]
    likely: list[float] = []
    for start in range(0, len(places), AT_ONCE):
        shown = np.stack([pixels[hits[place].path or ""] for place in places[start : start + AT_ONCE]])
        likely += fused.logits(shown, [words] * len(shown)).tolist()
    order = sorted(range(len(places)), key=lambda number: -likely[number])
    moved = list(hits)
    for place, number in zip(places, order, strict=True):
        moved[place] = hits[places[number]]
    return [hit._replace(rank=rank) for rank, hit in enumerate(moved, 1)]
