"""Recurrent networks from one sequence to another; importing this package registers them."""

from zoo.seq2seq import gru_attention as gru_attention
from zoo.seq2seq import lstm as lstm
from zoo.seq2seq import luong as luong
