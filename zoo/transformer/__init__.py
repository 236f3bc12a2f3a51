"""Transformers, by name in the registry."""

from zoo.transformer import decoder, encoder, encoder_decoder, t5, vit
from zoo.transformer.decoder import Decoder
from zoo.transformer.encoder import Encoder
from zoo.transformer.encoder_decoder import EncoderDecoder
from zoo.transformer.t5 import T5
from zoo.transformer.vit import ViT

__all__ = ["T5", "Decoder", "Encoder", "EncoderDecoder", "ViT", "decoder", "encoder", "encoder_decoder", "t5", "vit"]
