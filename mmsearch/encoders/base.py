"""What an encoder is: the four members that every one has, and what a bundle offers beside them.

Anything with the members of `Encoder` works in `Index(..., encoder=...)`. A `FeatureEncoder` also shows its towers'
outputs and applies the projection heads apart from them, so that an index can keep features and move to other heads
without reading a picture again.
"""

from collections.abc import Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt

from mmsearch.encoders.preprocess import PixelSpec
from mmsearch.errors import UsageError

if TYPE_CHECKING:
    from PIL import Image

FloatArray: TypeAlias = npt.NDArray[np.float32]
PixelArray: TypeAlias = npt.NDArray[np.uint8]


@runtime_checkable
class Encoder(Protocol):
    """Turns images and texts into rows of one shared space."""

    @property
    def name(self) -> str:
        """What the index remembers it by."""

    @property
    def dim(self) -> int:
        """Length of a vector."""

    def encode_images(self, images: "Sequence[Image.Image]") -> FloatArray:
        """(n, dim) float32, rows of length 1."""

    def encode_texts(self, texts: Sequence[str]) -> FloatArray:
        """(n, dim) float32, rows of length 1."""


def an_encoder(name: str, value: Any) -> Encoder:
    """An encoder, as an argument. Raises UsageError."""
    if isinstance(value, type) or not isinstance(value, Encoder):
        raise UsageError(f"{name} has name, dim, encode_images and encode_texts, as in mmsearch.Encoder.")
    if not isinstance(value.name, str) or not isinstance(value.dim, Integral):
        raise UsageError(f"{name} has a string as its name and a whole number as its dim.")
    return value


@runtime_checkable
class FeatureEncoder(Encoder, Protocol):
    """An encoder whose towers and projection heads can be run apart; every bundle is one."""

    @property
    def fingerprint(self) -> str:
        """Hash of the bundle's content; an index made with another one is refused."""

    @property
    def pixels(self) -> PixelSpec:
        """The pixels that the image tower reads."""

    @property
    def max_tokens(self) -> int:
        """How many tokens of a text the text tower reads; the rest is cut."""

    def count_tokens(self, text: str) -> int:
        """Number of tokens of a text, before any cut."""

    def image_features(self, pixels: PixelArray) -> FloatArray:
        """(n, height, width, 3) uint8 -> (n, image features) float32, as they come out of the tower."""

    def text_features(self, texts: Sequence[str]) -> FloatArray:
        """-> (n, text features) float32, as they come out of the tower."""

    def project_images(self, features: FloatArray) -> FloatArray:
        """(n, image features) -> (n, dim) float32, rows of length 1."""

    def project_texts(self, features: FloatArray) -> FloatArray:
        """(n, text features) -> (n, dim) float32, rows of length 1."""
