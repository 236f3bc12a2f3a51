"""One small model of every architecture."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import zoo

_SEQ2SEQ = {"vocab_size": 11, "source_vocab_size": 11, "embedding_size": 4, "hidden_size": 6}
_TRANSFORMER = {"hidden_size": 8, "num_layers": 1, "num_heads": 2, "mlp_size": 12}
_TOKENS = {"vocab_size": 11, "max_length": 16, **_TRANSFORMER}
ONE_OF_EACH: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {  # fields, and an input's shape without the batch
    "simple_cnn": ({"hidden_size": 16}, (8, 8, 3)),
    "lenet5": ({}, (20, 20, 1)),
    "resnet8": ({"width": 4, "num_classes": 3}, (8, 8, 3)),
    "wide_resnet28_10": ({"width": 4, "stage_sizes": (1, 1, 1)}, (8, 8, 3)),
    "airbench": ({"widths": (4, 4, 4)}, (9, 9, 3)),
    "alexnet": ({"hidden_size": 8, "num_classes": 3}, (63, 63, 3)),
    "vgg11_bn": ({"hidden_size": 8, "num_classes": 3}, (32, 32, 3)),
    "densenet121": ({"stage_sizes": (1, 1, 1, 1), "growth_width": 4, "width": 8, "num_classes": 3}, (33, 33, 3)),
    "mobilenet_v2": ({"multiplier": 0.1, "num_classes": 3}, (32, 32, 3)),
    "mobilenet_v3_small": ({"hidden_size": 8, "num_classes": 3}, (32, 32, 3)),
    "efficientnet_lite0": ({"num_classes": 3}, (32, 32, 3)),
    "convnext_tiny": ({"stage_sizes": (1, 1, 1, 1), "width": 8, "num_classes": 3}, (33, 33, 3)),
    "unet_small": ({"widths": (4, 6, 8), "num_classes": 3}, (9, 10, 3)),
    "deeplabv3_resnet50": ({"stage_sizes": (1, 1, 1, 1), "width": 8, "num_classes": 3}, (17, 18, 3)),
    "lstm": ({"hidden_size": 5, "num_layers": 2, "bidirectional": True}, (4, 3)),
    "gru": ({"hidden_size": 5, "bidirectional": True}, (4, 3)),
    "rnn": ({"hidden_size": 5}, (4, 3)),
    "lstm_forecaster": ({"hidden_size": 5}, (4, 1)),
    "lstm_encoder": ({"hidden_size": 5, "embedding_size": 4, "num_layers": 1}, (4, 3)),
    "lstm_sentence_encoder": ({"hidden_size": 5, "embedding_size": 4, "num_layers": 1, "vocab_size": 11}, (4,)),
    "lstm_classifier": ({"hidden_size": 5, "embedding_size": 4, "vocab_size": 11, "pooling": "attention"}, (4,)),
    "lstm_lm": ({"hidden_size": 5, "vocab_size": 11, "num_layers": 1}, (4,)),
    "awd_lstm": ({"hidden_size": 5, "embedding_size": 4, "vocab_size": 11, "num_layers": 2}, (4,)),
    "seq2seq_lstm": ({**_SEQ2SEQ, "num_layers": 1}, (4,)),
    "seq2seq_lstm_luong": ({**_SEQ2SEQ, "num_layers": 1, "score": "concat"}, (4,)),
    "seq2seq_gru_attention": ({**_SEQ2SEQ, "attention_size": 5, "maxout_size": 4}, (4,)),
    "nanogpt": (_TOKENS, (4,)),
    "llama3_1b": ({**_TOKENS, "num_kv_heads": 1}, (4,)),
    "bert_base": (_TOKENS, (4,)),
    "minilm_l6": (_TOKENS, (4,)),
    "mpnet_base": (_TOKENS, (4,)),
    "transformer_base": (_TOKENS, (4,)),
    "t5_small": (_TOKENS, (4,)),
    "clip_vit_base32": (
        {
            **{"vocab_size": 11, "image_size": 8, "patch_size": 4, "hidden_size": 8, "num_layers": 1, "num_heads": 2},
            **{"max_length": 16, "text_hidden_size": 8, "text_num_layers": 1, "text_num_heads": 2, "embedding_size": 6},
        },
        (8, 8, 3),
    ),
    "vit_tiny16": ({**_TRANSFORMER, "image_size": 8, "patch_size": 4, "num_classes": 3}, (8, 8, 3)),
}

# Whose outputs are no array: test_detectors is of them.
DETECTORS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "fasterrcnn_resnet50_fpn": (
        {
            **{"backbone_name": "resnet8", "backbone_args": {"width": 4}, "stages": ("stage1", "stage2", "stage3")},
            **{"width": 4, "hidden_size": 8, "num_classes": 2, "anchors": ((8,), (12,), (16,), (24,))},
            **{"num_proposals": (20, 10), "train_proposals": (20, 10), "num_detections": 5},
        },
        (32, 36, 3),
    ),
    "retinanet_resnet50_fpn": (
        {
            **{"backbone_name": "resnet8", "backbone_args": {"width": 4}, "stages": ("stage2", "stage3")},
            **{"width": 4, "num_classes": 2, "anchors": ((8,), (12,), (16,), (24,)), "num_detections": 5},
        },
        (32, 36, 3),
    ),
}


def new(name: str, dtype: str = "float32", **more: Any) -> tuple[Any, tuple[Any, dict[str, Any]]]:
    """A small model of a dtype, and the arguments of a batch of two: an input, and keywords."""
    fields, shape = {**ONE_OF_EACH, **DETECTORS}[name]
    model = zoo.create_model(name, **{**fields, "dtype": dtype, "param_dtype": dtype, **more})
    rng = np.random.default_rng(0)
    info = zoo.model_info(name)
    if info.input_dtype == "int32":
        x = jnp.asarray(rng.integers(0, 11, (2, *shape)), jnp.int32)
    else:
        x = jnp.asarray(rng.normal(size=(2, *shape)), dtype)
    tokens = {key: jnp.asarray(rng.integers(0, 11, (2, 4)), jnp.int32) for key in info.more_inputs}
    return model, (x, tokens)


def variables_of(model: Any, x: Any, **keywords: Any) -> Any:
    """Drawn variables, none of which is zero."""
    variables = jax.jit(model.init)(jax.random.key(0), x, **keywords)
    leaves, tree = jax.tree.flatten(variables)
    rng = np.random.default_rng(1)
    return jax.tree.unflatten(tree, [leaf + 0.1 * jnp.asarray(rng.random(leaf.shape), leaf.dtype) for leaf in leaves])
