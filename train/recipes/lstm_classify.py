"""Which module of the standard library does a snippet of 128 characters come from? Forty of them; offline.

python -m train lstm-classify

94 seconds on two cores; 34.5 % of the forty modules right on the last tenth of each, 41.5 % on the tenth before it
(Python 3.11.7, seed 0). Chance is 2.5 %.
"""

from train import Classification, Config, LabelledTextConfig, LogConfig, ModelConfig, OptimizerConfig


def config() -> Config:
    fields = {"embedding_size": 64, "hidden_size": 128, "pooling": "max", "dropout_rate": 0.2}
    return Config(
        workdir="runs/lstm-classify",
        steps=800,
        batch_size=64,
        eval_every=400,
        model=ModelConfig("lstm_classifier", fields),
        data=LabelledTextConfig("stdlib", context=128),
        task=Classification(),
        optimizer=OptimizerConfig("adamw", 4e-3, warmup_steps=50, weight_decay=0.05, clip_norm=1.0),
        log=LogConfig(every=100),
    )
