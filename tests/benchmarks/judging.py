"""`python -m tests.benchmarks.judging`: the curve of `match` and `classify` where a model has none of its own.

Matched pairs: the photographs of tests/held_out with their labels, by `lite`, which has seen none of them. Unmatched:
the same photographs with each other's labels. The photographs are parted in two by turns; each half is judged by the
curve of the other.
"""

import numpy as np
from PIL import Image

import mmsearch
from mmsearch.encoders.calibration import Calibration
from mmsearch.everyday import everyday_queries
from mmsearch.judging import standing
from tests.conftest import ROOT

HELD_OUT = ROOT / "tests" / "held_out"


def main() -> None:
    """Print the curve, and how good its probabilities are."""
    encoder = mmsearch.load_encoder("lite")
    named = [line.split("\t") for line in (HELD_OUT / "labels.tsv").read_text(encoding="utf-8").splitlines()]
    pictures = encoder.encode_images([Image.open(HELD_OUT / file) for file, _ in named])
    labels = sorted({label for _, label in named})
    texts, everyday = encoder.encode_texts(labels), everyday_queries(encoder)
    read = np.stack([standing(picture, texts, everyday) for picture in pictures])  # (pictures, labels)
    right = np.array([[label == other for other in labels] for _, label in named])
    curve = Calibration.fitted(read[right], read[~right])
    print(f"all: slope {curve.slope}, intercept {curve.intercept}")
    halves = [np.arange(len(named)) % 2 == part for part in (0, 1)]
    log_loss, correct = [], []
    for one, other in (halves, halves[::-1]):
        learned = Calibration.fitted(read[one][right[one]], read[one][~right[one]])
        for pairs, sign in ((right, 1), (~right, -1)):
            likely = learned.probability(read[other][pairs[other]])
            log_loss.append(float(-np.log(likely if sign > 0 else 1 - likely).mean()))
            correct.append(float(((likely > 0.5) == (sign > 0)).mean()))
    print(f"on the other half: log loss {np.mean(log_loss):.3f} (a coin: 0.693), right {np.mean(correct):.3f}")
    best = read.argmax(axis=1)
    print(f"zero-shot, {len(labels)} labels: {right[np.arange(len(best)), best].mean():.3f}")


main()
