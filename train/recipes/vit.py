"""A small Vision Transformer on CIFAR-10 from scratch: patches of 4 x 4 pixels, 5 epochs.

    python -m train vit

    Data: CIFAR-10
    Result: test accuracy 74.4 %, validation 75.0 % (seed 0)
    Time: 506 s

The predictions of an image and its mirror image are averaged.
"""

from train import AugmentConfig, Classification, Config, ImageData, LogConfig, ModelConfig, OptimizerConfig


def config() -> Config:
    return Config(
        workdir="runs/vit",
        steps=1760,
        batch_size=128,
        eval_every=440,
        model=ModelConfig("vit_tiny16", {"patch_size": 4, "hidden_size": 128, "num_layers": 4, "num_heads": 4}),
        data=ImageData("cifar10"),
        task=Classification(
            label_smoothing=0.1, test_flip=True, augment=AugmentConfig(shift=2, pad="reflect", flip=True)
        ),
        optimizer=OptimizerConfig("muon", 2e-2, warmup_steps=100, weight_decay=0.05, clip_norm=1.0),
        log=LogConfig(every=40),
    )
