"""A CNN on MNIST.

    python -m train mnist

Costs 2 minutes on two CPU cores. Reaches 99.54 % on the test images (seed 0).
"""

from train import AugmentConfig, Config, DataConfig, LogConfig, ModelConfig, OptimizerConfig


def config() -> Config:
    model = {"widths": (16, 32, 64), "hidden_size": 128, "dropout_rate": 0.5}
    return Config(
        workdir="runs/mnist",
        steps=4200,
        batch_size=128,
        eval_every=1000,
        model=ModelConfig("simple_cnn", model),
        data=DataConfig("mnist"),
        augment=AugmentConfig(shift=2, rotate=15, scale=0.15),
        optimizer=OptimizerConfig("adamw", 4e-3, warmup_steps=200, weight_decay=1e-2, ema=0.998),
        log=LogConfig(every=100),
    )
