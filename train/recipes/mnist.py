"""A CNN on MNIST."""

from train import AugmentConfig, Config, DataConfig, LogConfig, ModelConfig, OptimizerConfig


def config() -> Config:
    return Config(
        workdir="runs/mnist",
        steps=4000,
        batch_size=128,
        eval_every=1000,
        model=ModelConfig("simple_cnn", {"hidden_size": 256, "dropout_rate": 0.3}),
        data=DataConfig("mnist"),
        augment=AugmentConfig(shift=2, rotate=10, scale=0.1),
        optimizer=OptimizerConfig("adamw", 2e-3, warmup_steps=200, weight_decay=1e-2, ema=0.998),
        log=LogConfig(every=100),
    )
