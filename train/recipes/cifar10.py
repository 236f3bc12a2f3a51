"""The CNN of framework tutorials on CIFAR-10, trained as they do: Adam, 10 epochs, no augmentation.

    python -m train cifar10

    Data: CIFAR-10
    Result: test accuracy 69.7 % (seed 0)
    Time: 1,070 s

It trains on 45,000 of the images; the last tenth validates. After the last step, without choosing the best weights, it
reaches 68.6 %, and PyTorch from the same weights on the same batches 68.9 %.
"""

from train import Config, ImageData, LogConfig, ModelConfig, OptimizerConfig


def config() -> Config:
    return Config(
        workdir="runs/cifar10",
        steps=7040,
        batch_size=64,
        eval_every=704,
        model=ModelConfig("simple_cnn"),
        data=ImageData("cifar10"),
        optimizer=OptimizerConfig("adam", 1e-3, schedule="constant"),
        log=LogConfig(every=100),
    )
