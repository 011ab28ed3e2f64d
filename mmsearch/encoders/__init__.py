"""Encoders: what turns images and texts into rows of one shared space."""

from mmsearch.encoders.base import Encoder, FeatureEncoder
from mmsearch.encoders.bundle import Bundle, HeadSpec, TextSpec, optimise, write_bundle
from mmsearch.encoders.preprocess import PixelSpec

__all__ = ["Bundle", "Encoder", "FeatureEncoder", "HeadSpec", "PixelSpec", "TextSpec", "optimise", "write_bundle"]
