"""A character model of Shakespeare's plays, one layer of 384.

python -m train shakespeare-lstm

Two minutes on two cores; 1.530 nats a character on validation, 1.619 on test, the last two twentieths of the text
(2.21 and 2.34 bits; seed 0). Seed 1 gives 1.622 on test, seed 2 1.791: there a cell counts the characters read, and
loses 0.2 nats where the text is longer than the 20,000 of each stream that it was trained on.
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
