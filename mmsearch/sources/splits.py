"""What the column `split` says: which pairs are learned from, and which are held out.

Every command reads the column by this one rule, so that no pair is learned from by one that another measures on.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Literal

Split = Literal["train", "validation", "test"]

# In lower case, without blanks, hyphens and underscores. "restval" is learned from (Karpathy & Fei-Fei 2015).
_NAMES: dict[str, Split] = {
    **dict.fromkeys(("train", "training", "trn", "learn", "fit", "restval"), "train"),
    **dict.fromkeys(("val", "valid", "validate", "validation", "dev", "devel", "development"), "validation"),
    **dict.fromkeys(("test", "testing", "tst", "eval", "evaluate", "evaluation", "holdout", "heldout"), "test"),
}


def split_of(name: str) -> Split | None:
    """The split that a cell of the column names; None for an empty cell. Raises ValueError for any other word."""
    plain = "".join(each for each in name.casefold() if not each.isspace() and each not in "-_")
    if not plain:
        return None
    if plain not in _NAMES:
        raise ValueError(
            f"has the split {name.strip()[:40]!r}; a split is train, validation (val, dev) or test (eval). "
            "Correct it, or name another column with --split-column; '' is none"
        )
    return _NAMES[plain]


def is_held_out(split: Split | None) -> bool:
    """Whether nothing is learned from pairs of this split."""
    return split in ("validation", "test")


def firmer(one: Split | None, other: Split | None) -> Split | None:
    """The split of an image whose pairs name two: what is held out once is never learned from."""
    return other if one is None or (is_held_out(other) and not is_held_out(one)) else one


def held_out(
    splits: Sequence[Split | None], groups: Sequence[str], share: float, point: Callable[[str], float]
) -> list[bool]:
    """Which places are held out: groups of which the splits say so for one, else a share of all groups.

    point: a number of 0 to below 1 for a group by its name, the same whatever else is there; below the share is out.
    """
    if any(split is not None for split in splits):
        outside = {group for group, split in zip(groups, splits, strict=True) if is_held_out(split)}
        return [group in outside for group in groups]
    return [point(group) < share for group in groups]


def point_of(group: str, seed: int) -> float:
    """A number of 0 to below 1 for a group, as heads and prepared pairs are split by."""
    return int.from_bytes(_digest(group, seed)[:7]) / 2**56


def reports(group: str, seed: int) -> bool:
    """Whether a group that is held out is reported on, rather than chosen by: half of them are."""
    return bool(_digest(group, seed)[7] % 2)


def _digest(group: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed} {group}".encode("utf-8", "surrogatepass")).digest()
