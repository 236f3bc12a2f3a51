"""Convolutional networks; importing this package registers them."""

from zoo.cnn import lenet as lenet
from zoo.cnn import resnet as resnet
from zoo.cnn import simple_cnn as simple_cnn
