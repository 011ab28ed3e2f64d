"""Encoders: what turns images and texts into rows of one shared space."""

from mmsearch.encoders.base import Encoder, FeatureEncoder
from mmsearch.encoders.bundle import Bundle
from mmsearch.encoders.manifest import HeadSpec, TextSpec
from mmsearch.encoders.preprocess import PixelSpec
from mmsearch.encoders.sessions import optimise
from mmsearch.encoders.writing import write_bundle

__all__ = ["Bundle", "Encoder", "FeatureEncoder", "HeadSpec", "PixelSpec", "TextSpec", "optimise", "write_bundle"]
