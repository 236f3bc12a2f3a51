"""A CNN on scikit-learn's handwritten digits, offline.

    python -m train cnn

Costs 10 seconds on two CPU cores. Reaches 98.7 % on the 360 test images (mean of seeds 0, 1, 2).
"""

from train import AugmentConfig, Config, DataConfig, LogConfig, ModelConfig, OptimizerConfig


def config() -> Config:
    return Config(
        workdir="runs/cnn",
        steps=1500,
        batch_size=64,
        eval_every=250,
        model=ModelConfig("simple_cnn", {"hidden_size": 128}),
        data=DataConfig("digits"),
        augment=AugmentConfig(shift=1, rotate=10, scale=0.1),
        optimizer=OptimizerConfig("adamw", 3e-3, warmup_steps=50, weight_decay=1e-2, ema=0.99),
        log=LogConfig(every=50),
    )
