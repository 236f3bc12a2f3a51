"""LeNet-5 on MNIST: the weights that come with the zoo.

python -m train mnist-lenet

Data: MNIST
Result: test accuracy 99.26 % (seeds 0, 1, 2)
Time: 80 to 162 s
"""

from train import AugmentConfig, Classification, Config, ImageData, LogConfig, ModelConfig, OptimizerConfig


def config() -> Config:
    return Config(
        workdir="runs/mnist-lenet",
        steps=4000,
        batch_size=128,
        eval_every=1000,
        model=ModelConfig("lenet5"),
        data=ImageData("mnist"),
        task=Classification(augment=AugmentConfig(shift=2, rotate=15, scale=0.15)),
        optimizer=OptimizerConfig("adamw", 3e-3, warmup_steps=200, weight_decay=1e-2, ema=0.998),
        log=LogConfig(every=200),
    )
