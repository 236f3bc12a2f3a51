"""Transformers, by name in the registry."""

from zoo.transformer import decoder, encoder, vit
from zoo.transformer.decoder import Decoder
from zoo.transformer.encoder import Encoder
from zoo.transformer.vit import ViT

__all__ = ["Decoder", "Encoder", "ViT", "decoder", "encoder", "vit"]
