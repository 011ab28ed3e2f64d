"""Everyday queries: what people ask of their pictures, for an index that nobody has asked anything yet.

A large vector index is tuned by asking it (store/cells.py), and words lie elsewhere in the shared space than pictures.
Where an index has too few texts of its own to stand for them, these do, encoded by its own model.
"""

import numpy as np

from mmsearch.embedding import embed_texts
from mmsearch.encoders.base import Encoder, FloatArray
from mmsearch.store.records import Projection

# fmt: off
SUBJECTS = (
    "a dog", "a cat", "a horse", "birds", "a flower", "trees", "a forest", "mountains", "a lake", "the sea", "a beach",
    "a river", "the sky", "clouds", "a sunset", "snow", "rain", "a city at night", "a street", "a bridge", "a church",
    "a castle", "a house", "a garden", "a kitchen", "a table with food", "a cake", "a cup of coffee", "fruit", "bread",
    "people", "a woman", "a man", "a child", "a baby", "a family", "friends", "a wedding", "a birthday party",
    "a concert", "a football match", "a car", "a bicycle", "a train", "an aeroplane", "a boat", "a motorcycle", "a bus",
    "a book", "a computer", "a telephone", "a guitar", "a clock", "a chair", "a bed", "a lamp", "a map", "a painting",
    "a drawing", "a screenshot", "a document", "a sign", "a butterfly", "a fish",
)
MANNERS = ("{}", "a photo of {}", "{} in the evening, seen from far away")
# fmt: on


QUERIES = tuple(manner.format(subject) for manner in MANNERS for subject in SUBJECTS)


# Letters without a meaning, and signs that many vocabularies lack: what a model makes of those, it makes of every text
# that it cannot read.
NONSENSE = (
    "vmijmfl uidywrjo", "waqbnndx gonow", "nuzmzimhl gayuvky", "spzxjlk icgexw bjxdfbht", "yrldpccqp", "xdlio gncgzgi",
    "rajhsx xcdhtua srdeooj", "dfbhka efmbeetl", "xgnpn lxqetcvm iftnfrn", "csnzgoy ajqjdabyj", "goeosvsd", "yyvf",
    "xqei hrgqdmgm kpvrnpthi", "sbfyz tteqb", "aqxslj", "lnke mgjr lpgfxwprt", "\ua66e", "%%%%",
)  # fmt: skip


def everyday_queries(encoder: Encoder, project: Projection | None = None) -> FloatArray:
    """(192, dim) float32, rows of length 1; those for which the model has no finite vector are left out.

    project: as trained heads make them, None: as the model's own.
    """
    asked = [row for row in embed_texts(encoder, QUERIES) if row.usable]
    vectors = np.stack([row.vector for row in asked])
    if project is None:
        return vectors
    return project("text", vectors, np.stack([row.learns_from for row in asked]))
