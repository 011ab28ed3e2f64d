"""A vector for each of ImageNet's classes, of what WordNet says: names, definition, and what it is a kind of."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from timm.data import ImageNetInfo

from mmsearch.encoders.heads import unit_rows

FloatArray: TypeAlias = npt.NDArray[np.float32]
Embed: TypeAlias = Callable[[Sequence[str]], FloatArray]

DEFINITION = 0.5  # how much of its definition's vector is added to that of a class's names
ABOVE = 0.5  # and of what it is a kind of: a Pembroke is a corgi, a dog, an animal
FADING = 0.7  # less of it with every step up
WIDEST = 200  # classes; what is above more of them ("artifact") says nothing


@dataclass(frozen=True)
class Synset:
    """One of WordNet's meanings."""

    words: tuple[str, ...]
    definition: str
    above: tuple[str, ...]  # ids of what it is a kind of


def nouns(data_noun: Path) -> dict[str, Synset]:
    """All nouns of WordNet by their id, the eight digits that ImageNet has after an n. Format: wndb(5WN)."""
    synsets = {}
    for line in data_noun.read_text(encoding="utf-8").splitlines():
        if line.startswith("  "):  # the licence
            continue
        left, _, gloss = line.partition(" | ")
        fields = left.split()
        words = 2 * int(fields[3], 16)
        pointers = fields[5 + words :]
        above = tuple(
            pointers[place + 1]
            for place in range(0, 4 * int(fields[4 + words]), 4)
            if pointers[place] in ("@", "@i") and pointers[place + 2] == "n"
        )
        names = tuple(word.replace("_", " ") for word in fields[4 : 4 + words : 2])
        synsets[fields[0]] = Synset(names, gloss.split('; "')[0].strip(), above)
    return synsets


def class_vectors(synsets: Mapping[str, Synset], embed: Embed, definition: float, above: float) -> FloatArray:
    """(1000, dim) float32, in the order of the classifier's outputs; lengths carry nothing."""
    info = ImageNetInfo("imagenet-1k")
    ids = [name.removeprefix("n") for name in info.label_names()]
    higher = [_above(synsets, one) for one in ids]
    below: dict[str, int] = {}
    for steps in higher:
        for one in steps:
            below[one] = below.get(one, 0) + 1
    told = {one for one, count in below.items() if count <= WIDEST}
    # Sorted: what is embedded together, and so the last digits, must not depend on Python's hashes.
    words = {one: unit_rows(embed(synsets[one].words).mean(axis=0, keepdims=True))[0] for one in sorted({*ids} | told)}
    full, short = info.label_descriptions(detailed=True), info.label_descriptions()
    definitions = [text.removeprefix(f"{name}: ") for text, name in zip(full, short, strict=True)]
    vectors: FloatArray = embed(short) + np.stack([words[one] for one in ids]) + definition * embed(definitions)
    for place, steps in enumerate(higher):
        for one, distance in steps.items():
            if one in told:
                vectors[place] += above * FADING ** (distance - 1) * words[one]
    return vectors.astype(np.float32)


def _above(synsets: Mapping[str, Synset], start: str) -> dict[str, int]:
    """What `start` is a kind of, with the least number of steps to it."""
    found: dict[str, int] = {}
    edge = [start]
    distance = 0
    while edge:
        distance += 1
        edge = [one for each in edge for one in synsets[each].above if one not in found]
        found |= dict.fromkeys(edge, distance)
    return found
