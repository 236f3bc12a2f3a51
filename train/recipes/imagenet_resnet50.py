"""ResNet-50 on ImageNet, 90 epochs (He et al. 2016; rate and warm-up of Goyal et al. 2017).

    python -m train imagenet-resnet50 --data.dir DIR

    Data: ImageNet
    Result: not run
    Time: not run

Compiled ahead of time (tests/train/test_recipes.py). Crops are taken from images of 224 pixels a side, not from the
originals.
"""

from train import AugmentConfig, Classification, Config, ImageData, LogConfig, ModelConfig, OptimizerConfig


def config() -> Config:
    steps_per_epoch = 1251
    return Config(
        workdir="runs/imagenet-resnet50",
        steps=90 * steps_per_epoch,
        batch_size=1024,
        eval_every=steps_per_epoch,
        model=ModelConfig("resnet50", {"dtype": "bfloat16"}),
        data=ImageData("imagenet2012", image_size=224),
        task=Classification(label_smoothing=0.1, augment=AugmentConfig(crop_area=0.08, flip=True)),
        optimizer=OptimizerConfig(
            "sgd",
            0.4,
            warmup_steps=5 * steps_per_epoch,
            weight_decay=1e-4,
            args={"momentum": 0.9, "nesterov": True},
        ),
        log=LogConfig(every=100),
    )
