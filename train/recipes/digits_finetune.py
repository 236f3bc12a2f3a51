"""LeNet-5, trained on MNIST, fine-tuned to 100 of scikit-learn's digits, offline.

    python -m train digits-finetune

    Data: scikit-learn's digits, 100 of them
    Result: test accuracy 94.4 % (seeds 0, 1, 2)
    Time: 6 to 7 s

The digits are normalised as MNIST was. From scratch, with --model.weights None, the same steps reach 84.1 %.
"""

from train import AugmentConfig, Classification, Config, ImageData, LogConfig, ModelConfig, OptimizerConfig


def config() -> Config:
    return Config(
        workdir="runs/digits-finetune",
        steps=300,
        batch_size=50,
        eval_every=50,
        model=ModelConfig("lenet5", weights="pretrained"),
        data=ImageData("digits", image_size=28, train_examples=100),
        task=Classification(augment=AugmentConfig(shift=2, rotate=10, scale=0.1)),
        optimizer=OptimizerConfig("adamw", 1e-3, warmup_steps=30, weight_decay=1e-2, ema=0.98),
        log=LogConfig(every=50),
    )
