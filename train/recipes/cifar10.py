"""The CNN of framework tutorials on CIFAR-10, as they train it: Adam, 10 epochs, no augmentation.

    python -m train cifar10

Cost 18 minutes on two CPU cores, beside other work. Reaches 69.7 % with the best weights on validation data, 68.6 %
with the last ones (PyTorch, from the same weights on the same batches: 68.9 %). It trains on 45,000 of the images.
"""

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
