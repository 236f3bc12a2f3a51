"""Training: `python -m train RECIPE`, or `train.run(config)` from Python."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from train.config import Config, LogConfig, ModelConfig
    from train.data.augment import AugmentConfig
    from train.data.augment_boxes import BoxAugmentConfig
    from train.data.deform import DeformConfig
    from train.data.detection import DetectionData
    from train.data.dialogues import DialogueData
    from train.data.images import ImageData
    from train.data.labelled_text import LabelledTextData
    from train.data.multi_label import MultiLabelData
    from train.data.pairs import PairData
    from train.data.segmentation import SegmentationData
    from train.data.series import SeriesData
    from train.data.source import ArraySplit, Dataset, Source
    from train.data.text import TextData
    from train.loop import run
    from train.optimizer import OptimizerConfig
    from train.tasks.classification import Classification
    from train.tasks.detection import Detection
    from train.tasks.dialogues import Dialogues
    from train.tasks.distillation import Distillation
    from train.tasks.forecasting import Forecasting
    from train.tasks.language_model import LanguageModel
    from train.tasks.masked_language_model import MaskedLanguageModel
    from train.tasks.multi_label import MultiLabel
    from train.tasks.segmentation import Segmentation
    from train.tasks.task import Extra, Loss, Task
    from train.tasks.translation import Translation

# Imported when first asked for, so that `python -m train` can say which extra is missing.
_HOMES = {
    "train.config": ("Config", "LogConfig", "ModelConfig"),
    "train.data.augment": ("AugmentConfig",),
    "train.data.augment_boxes": ("BoxAugmentConfig",),
    "train.data.detection": ("DetectionData",),
    "train.data.deform": ("DeformConfig",),
    "train.data.dialogues": ("DialogueData",),
    "train.data.images": ("ImageData",),
    "train.data.labelled_text": ("LabelledTextData",),
    "train.data.multi_label": ("MultiLabelData",),
    "train.data.pairs": ("PairData",),
    "train.data.segmentation": ("SegmentationData",),
    "train.data.series": ("SeriesData",),
    "train.data.source": ("ArraySplit", "Dataset", "Source"),
    "train.data.text": ("TextData",),
    "train.loop": ("run",),
    "train.optimizer": ("OptimizerConfig",),
    "train.tasks.classification": ("Classification",),
    "train.tasks.detection": ("Detection",),
    "train.tasks.dialogues": ("Dialogues",),
    "train.tasks.distillation": ("Distillation",),
    "train.tasks.forecasting": ("Forecasting",),
    "train.tasks.language_model": ("LanguageModel",),
    "train.tasks.masked_language_model": ("MaskedLanguageModel",),
    "train.tasks.multi_label": ("MultiLabel",),
    "train.tasks.segmentation": ("Segmentation",),
    "train.tasks.task": ("Extra", "Loss", "Task"),
    "train.tasks.translation": ("Translation",),
}
__all__ = [
    "ArraySplit",
    "AugmentConfig",
    "BoxAugmentConfig",
    "Classification",
    "Config",
    "Dataset",
    "DeformConfig",
    "Detection",
    "DetectionData",
    "DialogueData",
    "Dialogues",
    "Distillation",
    "Extra",
    "Forecasting",
    "ImageData",
    "LabelledTextData",
    "LanguageModel",
    "LogConfig",
    "Loss",
    "MaskedLanguageModel",
    "ModelConfig",
    "MultiLabel",
    "MultiLabelData",
    "OptimizerConfig",
    "PairData",
    "Segmentation",
    "SegmentationData",
    "SeriesData",
    "Source",
    "Task",
    "TextData",
    "Translation",
    "run",
]


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(home), name)
    raise AttributeError(f"module 'train' has no attribute {name!r}")
