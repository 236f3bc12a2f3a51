"""Convolutional networks; importing this package registers them."""

from zoo.cnn import airbench as airbench
from zoo.cnn import alexnet as alexnet
from zoo.cnn import convnext as convnext
from zoo.cnn import densenet as densenet
from zoo.cnn import efficientnet as efficientnet
from zoo.cnn import lenet as lenet
from zoo.cnn import mobilenet as mobilenet
from zoo.cnn import resnet as resnet
from zoo.cnn import simple_cnn as simple_cnn
from zoo.cnn import vgg as vgg
from zoo.cnn import wide_resnet as wide_resnet
