"""ResNet-20 (He et al. 2016, section 4.2) on CIFAR-10, 10 epochs.

    python -m train cifar10-resnet20

Cost 46 minutes on two CPU cores, beside other work. Reaches 86.4 % on the test images (seed 0); the
paper, after 182 epochs, 91.25 %.
"""

from train import AugmentConfig, Config, DataConfig, LogConfig, ModelConfig, OptimizerConfig


def config() -> Config:
    return Config(
        workdir="runs/cifar10-resnet20",
        steps=3520,
        batch_size=128,
        eval_every=352,
        model=ModelConfig("resnet20"),
        data=DataConfig("cifar10"),
        augment=AugmentConfig(shift=4, flip=True),
        optimizer=OptimizerConfig(
            "sgd", 0.2, warmup_steps=352, weight_decay=5e-4, args={"momentum": 0.9, "nesterov": True}
        ),
        log=LogConfig(every=50),
    )
