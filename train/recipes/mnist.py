"""A CNN on MNIST.

python -m train mnist

Data: MNIST
Result: test accuracy 99.47 % (seeds 0, 1, 2)
Time: 97 to 107 s
"""

from train import AugmentConfig, Classification, Config, ImageData, LogConfig, ModelConfig, OptimizerConfig


def config() -> Config:
    model = {"widths": (16, 32, 64), "hidden_size": 128, "dropout_rate": 0.5}
    return Config(
        workdir="runs/mnist",
        steps=4200,
        batch_size=128,
        eval_every=1000,
        model=ModelConfig("simple_cnn", model),
        data=ImageData("mnist"),
        task=Classification(augment=AugmentConfig(shift=2, rotate=15, scale=0.15)),
        optimizer=OptimizerConfig("adamw", 4e-3, warmup_steps=200, weight_decay=1e-2, ema=0.998),
        log=LogConfig(every=100),
    )
