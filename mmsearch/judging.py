"""What a model says of one picture: does a text belong to it, which of some labels is it, which words fit.

A cosine means nothing by itself: 0.3 is much for one model and little for the next, and some texts are close to every
picture. So each is read against the cosines of the same picture with everyday texts (`everyday`), in units of their
deviation, and a logistic curve makes that a probability (Platt 1999). Where the model has a fusion encoder that told
matched from unmatched held-out pairs better than that, it answers instead; every answer says who gave it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from mmsearch.embedding import embed_pixels, embed_texts
from mmsearch.encoders.base import Encoder, FeatureEncoder, FloatArray
from mmsearch.encoders.calibration import Calibration
from mmsearch.encoders.joint import describing_of, fused_of
from mmsearch.errors import UsageError
from mmsearch.everyday import NONSENSE, QUERIES, SUBJECTS
from mmsearch.facts import Decoded
from mmsearch.pictures import PictureReader

if TYPE_CHECKING:
    from mmsearch.search import Hit

# Fitted on the 42 photographs of tests/held_out with their labels, by `lite`: python -m tests.benchmarks.judging
USUAL = Calibration(slope=1.10, intercept=-2.14)
LEAST_DEVIATION = 1e-3
# A label is shown as people would say it. CLIP's own list has 80 for ImageNet, whose mean gains 3.5 points there;
# Radford et al. 2021, section 3.1.4
TEMPLATES = ("{}", "a photo of {}", "a picture of {}", "a drawing of {}")
SAME = 0.999  # a cosine from which two texts are one to the model
LIKELY = 0.5  # a tag has to be likelier than not


@dataclass(frozen=True)
class Match:
    """Whether a text belongs to a picture. by: "fusion encoder" or "calibrated cosine".

    understood: False where the model reads no word of the text, and takes it for much the same as any meaningless one.
    Then it is not said to be likelier than what an ordinary everyday text is.
    """

    probability: float  # 0..1, where half of all pairs that are asked about belong together
    cosine: float
    by: str
    understood: bool = True


@dataclass(frozen=True)
class Label:
    """One label and the share that the model gives it; the shares of all labels that were asked about sum to 1.

    by: "trained head" or "zero-shot".
    """

    label: str
    probability: float
    by: str


@dataclass(frozen=True)
class Description:
    """What can be said of a picture.

    text: None where nothing fits. by: "decoder", "nearest captions" or "tags": who said so. captions: those of the
    index that are nearest, best first. tags: everyday words that fit, with their probabilities.
    """

    text: str | None
    by: str
    captions: tuple["Hit", ...] = ()
    tags: Mapping[str, float] = field(default_factory=dict)


class Judge:
    """Judges pictures by one model, in its own space or that of an index with its heads.

    embed_image: a picture, however it is given, -> (dim,) unit. embed_texts: -> (n, dim) unit rows. encoder: that may
    have a fusion encoder and a decoder (encoders/joint).
    """

    def __init__(
        self,
        embed_image: Callable[[Any], FloatArray],
        embed_texts: Callable[[Sequence[str]], FloatArray],
        encoder: Encoder,
        pictures: PictureReader,
        calibration: Calibration | None = None,
    ) -> None:
        self._embed_image = embed_image
        self._embed_texts = embed_texts
        self._encoder = encoder
        self._pictures = pictures
        self._calibration = calibration or USUAL
        self._fixed_rows: dict[tuple[str, ...], FloatArray] = {}

    def read(self, image: Any) -> Decoded:
        """A picture, however it is given, in the pixels that the model reads. Raises MediaError, QueryError."""
        return self._pictures.read(self._encoder, [image])[0]

    def match(self, image: Any, text: str) -> Match:
        """Whether a text belongs to a picture. Raises UsageError for an empty text."""
        if not text.strip():
            raise UsageError("match needs a text. Say what the picture should show.")
        image = self.read(image)
        picture = self._embed_image(image)
        row = self._embed_texts([text])
        everyday = self._fixed(QUERIES)
        fused = fused_of(self._encoder)
        if fused is not None and fused.worth is not None and fused.worth.judges:
            likely, by = float(fused.match(image.pixels[None], [text])[0]), "fusion encoder"
        else:
            likely, by = float(self._calibration.probability(standing(picture, row, everyday))[0]), "calibrated cosine"
        understood = self._understands(text, row[0], everyday)
        if not understood:
            likely = min(likely, float(self._calibration.probability(np.zeros(1, np.float32))[0]))
        return Match(likely, float(row[0] @ picture), by, understood)

    def _fixed(self, texts: tuple[str, ...]) -> FloatArray:
        """(n, dim) of texts that each judgement needs."""
        if texts not in self._fixed_rows:
            self._fixed_rows[texts] = self._embed_texts(texts)
        return self._fixed_rows[texts]

    def _understands(self, text: str, row: FloatArray, everyday: FloatArray) -> bool:
        """Whether a text says anything to the model: a word that it has whole, or a place nearer to what has a meaning.

        row: the text's vector. Of an encoder that shows no tokens, it is believed.
        """
        meaningless = float((self._fixed(NONSENSE) @ row).max())
        if meaningless > SAME:
            return False
        if not isinstance(self._encoder, FeatureEncoder) or meaningless <= float((everyday @ row).max()):
            return True
        one = self._encoder.count_tokens("a")
        return any(self._encoder.count_tokens(word) <= one for word in text.split())

    def classify(
        self, image: Any, labels: Sequence[str], *, text: str | None = None, templates: Sequence[str] = TEMPLATES
    ) -> list[Label]:
        """Labels with their shares, likeliest first. text: what is said with the picture, judged with it, half each.

        Each label stands for the mean of its prompts. Without labels, those that the model was trained to tell apart,
        where there are any. Raises UsageError for fewer than two labels, or the same twice.
        """
        if not labels and (fused := fused_of(self._encoder)) is not None and fused.classes:
            shares = fused.classify(self.read(image).pixels[None], [text or ""])[0]
            order = np.argsort(-shares, kind="stable")
            return [Label(fused.classes[place], float(shares[place]), "trained head") for place in order]
        if len(labels) < 2 or len({*labels}) < len(labels) or not all(label.strip() for label in labels):
            raise UsageError("classify needs two or more different labels, as in --labels cat,dog,bird.")
        if not templates or not all("{}" in template for template in templates):
            raise UsageError("A template has {} where the label stands, as in 'a photo of {}'.")
        prompts = self._embed_texts([template.replace("{}", label) for label in labels for template in templates])
        rows: FloatArray = prompts.reshape(len(labels), len(templates), -1).mean(axis=1)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)  # (labels, dim)
        everyday = self._fixed(QUERIES)
        stands_out = standing(self._embed_image(image), rows, everyday)
        if text is not None:
            stands_out = np.float32(0.5) * (stands_out + standing(self._embed_texts([text])[0], rows, everyday))
        shares = np.exp(self._calibration.slope * (stands_out - stands_out.max()))
        order = np.argsort(-shares, kind="stable")
        return [Label(labels[place], float(shares[place] / shares.sum()), "zero-shot") for place in order]

    def tags(self, image: Any, most: int = 5) -> dict[str, float]:
        """Everyday words that are likelier to fit than not, with their probabilities, likeliest first."""
        subjects = self._fixed(SUBJECTS)
        likely = self._calibration.probability(standing(self._embed_image(image), subjects, self._fixed(QUERIES)))
        best = [int(place) for place in np.argsort(-likely, kind="stable")[:most] if likely[place] > LIKELY]
        return {SUBJECTS[place]: float(likely[place]) for place in best}

    def said(self, image: Any) -> str | None:
        """What the model's decoder says of a picture; None where it has none, or says nothing."""
        describing = describing_of(self._encoder)
        return None if describing is None else describing.describe(self.read(image).pixels) or None

    def fitting(self, image: Any, captions: Sequence["Hit"]) -> list["Hit"]:
        """The captions, each with its cosine with the picture as score, that are likelier to fit than not."""
        scores = np.array([hit.score for hit in captions], np.float32)
        usual = self._fixed(QUERIES) @ self._embed_image(image)
        likely = self._calibration.probability(_deviations(scores, usual))
        return [hit for hit, probability in zip(captions, likely, strict=True) if probability > LIKELY]


def judge_of(encoder: Encoder) -> Judge:
    """A judge without an index. Its pictures are paths, bytes, open files or PIL images."""
    pictures = PictureReader()

    def embed_image(image: Any) -> FloatArray:
        (decoded,) = pictures.read(encoder, [image])
        return embed_pixels(encoder, [decoded.pixels])[0].vector

    def embed(texts: Sequence[str]) -> FloatArray:
        return np.stack([row.vector for row in embed_texts(encoder, texts)])

    return Judge(embed_image, embed, encoder, pictures, getattr(encoder, "calibration", None))


def standing(picture: FloatArray, texts: FloatArray, everyday: FloatArray) -> FloatArray:
    """(n,) how far each text stands out among everyday ones as an answer to a picture, in standard deviations.

    picture: (dim,). texts: (n, dim). everyday: (m, dim). All of length 1.
    """
    return _deviations(texts @ picture, everyday @ picture)


def _deviations(cosines: FloatArray, usual: FloatArray) -> FloatArray:
    stands_out: FloatArray = (cosines - usual.mean()) / max(float(usual.std()), LEAST_DEVIATION)
    return stands_out


def described(captions: Sequence["Hit"], tags: Mapping[str, float], said: str | None = None) -> Description:
    """The best that there is: what a decoder said, else the nearest caption, else the tags."""
    if said is not None:
        return Description(said, "decoder", tuple(captions), tags)
    if captions:
        return Description(captions[0].text, "nearest captions", tuple(captions), tags)
    return Description(", ".join(tags) or None, "tags", (), tags)
