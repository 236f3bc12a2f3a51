"""Decoding with any model of the sequence protocol: one implementation for all families."""

from zoo.decode.beam import Beams, beam_search, decode_sources, source_attention
from zoo.decode.constraints import Constraints
from zoo.decode.conversation import Conversation
from zoo.decode.sampling import Sampling, choose, filtered, sample
from zoo.decode.slots import Drawn, Request, Slots
from zoo.decode.text import Generation, generate, generate_samples, stream
from zoo.decode.translation import Hypothesis, translate

__all__ = [
    "Beams",
    "Constraints",
    "Conversation",
    "Drawn",
    "Generation",
    "Hypothesis",
    "Request",
    "Sampling",
    "Slots",
    "beam_search",
    "choose",
    "decode_sources",
    "filtered",
    "generate",
    "generate_samples",
    "sample",
    "source_attention",
    "stream",
    "translate",
]
