"""The tutorials' CNN on CIFAR-10."""

from train import Config, DataConfig, LogConfig, ModelConfig, OptimizerConfig


def config() -> Config:
    return Config(
        workdir="runs/cifar10",
        steps=7040,
        batch_size=64,
        eval_every=704,
        model=ModelConfig("simple_cnn"),
        data=DataConfig("cifar10"),
        optimizer=OptimizerConfig("adam", 1e-3, schedule="constant"),
        log=LogConfig(every=100),
    )
