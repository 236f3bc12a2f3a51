"""ResNet-20 (He et al. 2016, section 4.2) on CIFAR-10, 10 epochs.

    python -m train cifar10-resnet20

    Data: CIFAR-10
    Result: test accuracy 86.4 % (seed 0)
    Time: 2,748 s

The paper reaches 91.25 % after 182 epochs.
"""

from train import AugmentConfig, Classification, Config, ImageData, LogConfig, ModelConfig, OptimizerConfig


def config() -> Config:
    return Config(
        workdir="runs/cifar10-resnet20",
        steps=3520,
        batch_size=128,
        eval_every=352,
        model=ModelConfig("resnet20"),
        data=ImageData("cifar10"),
        task=Classification(augment=AugmentConfig(shift=4, flip=True)),
        optimizer=OptimizerConfig(
            "sgd", 0.2, warmup_steps=352, weight_decay=5e-4, args={"momentum": 0.9, "nesterov": True}
        ),
        log=LogConfig(every=50),
    )
