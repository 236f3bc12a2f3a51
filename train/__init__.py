"""Training: `python -m train RECIPE`, or `train.run(config)` from Python."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from train.config import (
        Config,
        DataConfig,
        LabelledTextConfig,
        LogConfig,
        ModelConfig,
        OptimizerConfig,
        PairsConfig,
        TextConfig,
    )
    from train.data.augment import AugmentConfig
    from train.loop import run
    from train.tasks.classification import Classification
    from train.tasks.language_model import LanguageModel
    from train.tasks.masked_language_model import MaskedLanguageModel
    from train.tasks.translation import Translation

# Imported when first asked for, so that `python -m train` can say which extra is missing.
_HOMES = {
    "AugmentConfig": "train.data.augment",
    "Classification": "train.tasks.classification",
    "Config": "train.config",
    "DataConfig": "train.config",
    "LabelledTextConfig": "train.config",
    "LanguageModel": "train.tasks.language_model",
    "LogConfig": "train.config",
    "MaskedLanguageModel": "train.tasks.masked_language_model",
    "ModelConfig": "train.config",
    "OptimizerConfig": "train.config",
    "PairsConfig": "train.config",
    "TextConfig": "train.config",
    "Translation": "train.tasks.translation",
    "run": "train.loop",
}
__all__ = [
    "AugmentConfig",
    "Classification",
    "Config",
    "DataConfig",
    "LabelledTextConfig",
    "LanguageModel",
    "LogConfig",
    "MaskedLanguageModel",
    "ModelConfig",
    "OptimizerConfig",
    "PairsConfig",
    "TextConfig",
    "Translation",
    "run",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'train' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
