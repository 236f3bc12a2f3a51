"""Training: `python -m train RECIPE`, or `train.run(config)` from Python."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from train.config import Config, DataConfig, LogConfig, ModelConfig, OptimizerConfig
    from train.data.augment import AugmentConfig
    from train.loop import run
    from train.tasks.classification import Classification

# Imported when first asked for, so that `python -m train` can say which extra is missing.
_HOMES = {
    "AugmentConfig": "train.data.augment",
    "Classification": "train.tasks.classification",
    "Config": "train.config",
    "DataConfig": "train.config",
    "LogConfig": "train.config",
    "ModelConfig": "train.config",
    "OptimizerConfig": "train.config",
    "run": "train.loop",
}
__all__ = [
    "AugmentConfig",
    "Classification",
    "Config",
    "DataConfig",
    "LogConfig",
    "ModelConfig",
    "OptimizerConfig",
    "run",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'train' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
