"""A character model of Shakespeare's plays, one layer of 384.

python -m train shakespeare-lstm

Two minutes on two cores; 1.530 nats a character on validation, 1.619 on test, the last two twentieths of the text
(2.21 and 2.34 bits; seed 0). Seeds differ: 1.622 on test with 1, 1.791 with 2.
"""

from train import Config, LanguageModel, LogConfig, ModelConfig, OptimizerConfig, TextConfig


def config() -> Config:
    return Config(
        workdir="runs/shakespeare-lstm",
        steps=1400,
        batch_size=50,
        eval_every=350,
        model=ModelConfig("lstm_lm", {"hidden_size": 384, "num_layers": 1, "dropout_rate": 0.1}),
        data=TextConfig("tiny_shakespeare", context=50),
        task=LanguageModel(),
        optimizer=OptimizerConfig("adamw", 4e-3, warmup_steps=50, weight_decay=0.1, clip_norm=1.0),
        log=LogConfig(every=100),
    )
