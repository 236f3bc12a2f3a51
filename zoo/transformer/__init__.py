"""Transformers; importing this package registers them."""

from zoo.registry import import_modules
from zoo.transformer.decoder import Decoder
from zoo.transformer.encoder import Encoder
from zoo.transformer.encoder_decoder import EncoderDecoder
from zoo.transformer.t5 import T5
from zoo.transformer.vit import ViT

__all__ = ["T5", "Decoder", "Encoder", "EncoderDecoder", "ViT"]

import_modules(__name__, __path__)
