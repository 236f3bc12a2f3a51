"""From a model of the sequence protocol to sequences: one implementation for every family."""

from zoo.decode.beam import Beams, beam_search, decode_sources, source_attention
from zoo.decode.sampling import Sampling, choose, filtered, sample
from zoo.decode.text import generate, stream
from zoo.decode.translation import Said, translate

__all__ = [
    "Beams",
    "Said",
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
