"""Dates as people write them in six languages, typing errors included, to ISO 8601; offline.

python -m train seq2seq

62 seconds from a cold start, on two cores; 99.95 % of 2,000 held-out dates
right (seed 0), none of whose days was trained on. It ends with samples and a picture of the attention.
"""

from train import Config, LogConfig, ModelConfig, OptimizerConfig, PairsConfig, Translation


def config() -> Config:
    sizes = {"embedding_size": 64, "hidden_size": 128, "attention_size": 64, "maxout_size": 64}
    return Config(
        workdir="runs/seq2seq",
        steps=1600,
        batch_size=64,
        eval_every=800,
        model=ModelConfig("seq2seq_gru_attention", sizes),
        data=PairsConfig("dates"),
        task=Translation(label_smoothing=0.0),
        optimizer=OptimizerConfig("adamw", 3e-3, warmup_steps=200, weight_decay=0.01, clip_norm=1.0),
        log=LogConfig(every=200),
    )
