"""A character language model of Shakespeare's plays, one layer of 384.

    python -m train shakespeare-lstm

    Data: tiny Shakespeare
    Result: test 1.618 nats, validation 1.529 nats (seeds 0, 1, 2)
    Time: 68 to 83 s

A state that is never set to zeros in training costs most where a user begins: 1.881 nats for windows read from zeros,
against 1.697 (see the guide to texts), and a seed of 1.791 on test, whose cell counts the characters read.
"""

from train import Config, LanguageModel, LogConfig, ModelConfig, OptimizerConfig, TextData


def config() -> Config:
    return Config(
        workdir="runs/shakespeare-lstm",
        steps=1400,
        batch_size=50,
        eval_every=350,
        model=ModelConfig("lstm_lm", {"hidden_size": 384, "num_layers": 1, "dropout_rate": 0.1}),
        data=TextData("tiny_shakespeare", context=50),
        task=LanguageModel(),
        optimizer=OptimizerConfig("adamw", 4e-3, warmup_steps=50, weight_decay=0.1, clip_norm=1.0),
        log=LogConfig(every=100),
    )
