"""ResNet-50 on ImageNet, 90 epochs (He et al. 2016; the rate and its warm-up are Goyal et al. 2017's).

    python -m train imagenet-resnet50 --data.dir DIR

Compiled ahead of time (tests/train/test_recipes.py), never run here: the 76 % of the literature is to be expected, and
hours, not minutes, on eight accelerators. Images are cropped out of 224 pixels a side, not out of the original.
"""

from train import AugmentConfig, Config, DataConfig, LogConfig, ModelConfig, OptimizerConfig
from train.tasks.classification import Classification


def config() -> Config:
    steps_per_epoch = 1251
    return Config(
        workdir="runs/imagenet-resnet50",
        steps=90 * steps_per_epoch,
        batch_size=1024,
        eval_every=steps_per_epoch,
        model=ModelConfig("resnet50", {"dtype": "bfloat16"}),
        data=DataConfig("imagenet2012", image_size=224),
        augment=AugmentConfig(crop_area=0.08, flip=True),
        task=Classification(label_smoothing=0.1),
        optimizer=OptimizerConfig(
            "sgd",
            0.4,
            warmup_steps=5 * steps_per_epoch,
            weight_decay=1e-4,
            args={"momentum": 0.9, "nesterov": True},
        ),
        log=LogConfig(every=100),
    )
