"""Which of forty modules of the standard library contains a snippet of 128 characters? Offline.

    python -m train lstm-classify

    Data: the standard library's sources
    Result: test accuracy 33.8 % (seeds 0, 1, 2)
    Time: 77 to 94 s

The last tenth of each module is the test data; chance is 2.5 %. The result is of Python 3.11.7.
"""

from train import Classification, Config, LabelledTextData, LogConfig, ModelConfig, OptimizerConfig


def config() -> Config:
    fields = {"embedding_size": 64, "hidden_size": 128, "pooling": "max", "dropout_rate": 0.2}
    return Config(
        workdir="runs/lstm-classify",
        steps=800,
        batch_size=64,
        eval_every=400,
        model=ModelConfig("lstm_classifier", fields),
        data=LabelledTextData("stdlib", context=128),
        task=Classification(),
        optimizer=OptimizerConfig("adamw", 4e-3, warmup_steps=50, weight_decay=0.05, clip_norm=1.0),
        log=LogConfig(every=100),
    )
