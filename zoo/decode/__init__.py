"""From a model of the sequence protocol to sequences: one implementation for every family."""

from zoo.decode.sampling import Sampling, choose, filtered, sample
from zoo.decode.text import generate, stream

__all__ = ["Sampling", "choose", "filtered", "generate", "sample", "stream"]
