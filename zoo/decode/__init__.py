"""Decoding with any model of the sequence protocol: one implementation for all families."""

from zoo.decode.beam import Beams, beam_search, decode_sources, source_attention
from zoo.decode.sampling import Sampling, choose, filtered, sample
from zoo.decode.text import generate, stream
from zoo.decode.translation import Hypothesis, translate

__all__ = [
    "Beams",
    "Hypothesis",
    "Sampling",
    "beam_search",
    "choose",
    "decode_sources",
    "filtered",
    "generate",
    "sample",
    "source_attention",
    "stream",
    "translate",
]
