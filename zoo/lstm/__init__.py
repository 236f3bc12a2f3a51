"""Recurrent networks; importing this package registers them."""

from zoo.lstm import awd_lstm as awd_lstm
from zoo.lstm import classifier as classifier
from zoo.lstm import encoder as encoder
from zoo.lstm import forecaster as forecaster
from zoo.lstm import language_model as language_model
from zoo.lstm import layers as layers
