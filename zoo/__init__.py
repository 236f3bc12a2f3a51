"""A zoo of neural networks as pure functions in JAX and Flax Linen.

import zoo
model = zoo.create_model("resnet18", num_classes=10)
"""

from zoo import cnn as cnn
from zoo import lstm as lstm
from zoo import seq2seq as seq2seq
from zoo import transformer as transformer
from zoo.decode import generate, translate
from zoo.errors import ZooError
from zoo.flops import count_flops
from zoo.ops.forward_mode import forward_mode
from zoo.publish import push_to_hub
from zoo.registry import ModelInfo, create_model, list_models, model_info, register
from zoo.run import Run, load
from zoo.weights import load_weights, save_weights
from zoo.weights.huggingface.folder import from_pretrained, save_pretrained
from zoo.zero_shot import zero_shot

__version__ = "0.1.0"
__all__ = [
    "ModelInfo",
    "Run",
    "ZooError",
    "count_flops",
    "create_model",
    "forward_mode",
    "from_pretrained",
    "generate",
    "list_models",
    "load",
    "load_weights",
    "model_info",
    "push_to_hub",
    "register",
    "save_pretrained",
    "save_weights",
    "translate",
    "zero_shot",
]
