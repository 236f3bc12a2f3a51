"""Transformers, by name in the registry."""

from zoo.transformer import decoder
from zoo.transformer.decoder import Decoder

__all__ = ["Decoder", "decoder"]
