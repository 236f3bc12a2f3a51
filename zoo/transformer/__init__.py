"""Transformers, by name in the registry."""

from zoo.transformer import decoder, encoder
from zoo.transformer.decoder import Decoder
from zoo.transformer.encoder import Encoder

__all__ = ["Decoder", "Encoder", "decoder", "encoder"]
