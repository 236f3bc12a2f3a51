"""A fast network for small images on CIFAR-10, narrower than the paper's (Jordan 2024), 7 epochs.

    python -m train cifar10-airbench

    Data: CIFAR-10
    Result: test accuracy 90.9 % (seed 0)
    Time: 912 s

The predictions of an image and its mirror image are averaged.
"""

from train import AugmentConfig, Classification, Config, ImageData, LogConfig, ModelConfig, OptimizerConfig


def config() -> Config:
    return Config(
        workdir="runs/cifar10-airbench",
        steps=630,
        batch_size=500,
        eval_every=210,
        model=ModelConfig("airbench", {"widths": (48, 96, 192)}),
        data=ImageData("cifar10"),
        task=Classification(
            label_smoothing=0.2, test_flip=True, augment=AugmentConfig(shift=2, pad="reflect", flip=True)
        ),
        optimizer=OptimizerConfig(
            "sgd",
            0.75,
            schedule="linear",
            warmup_steps=145,
            weight_decay=1.3e-3,
            ema=0.98,
            rates={"*norm*": 64},
            args={"momentum": 0.85, "nesterov": True},
        ),
        log=LogConfig(every=10),
    )
