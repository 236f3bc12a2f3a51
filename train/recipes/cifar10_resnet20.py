"""ResNet-20 on CIFAR-10."""

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
