"""Good or bad: the phrases of film reviews of SST-2, by a bidirectional LSTM over words, from scratch.

python -m train lstm-sentiment
"""

from train import Classification, Config, LabelledTextConfig, LogConfig, ModelConfig, OptimizerConfig


def config() -> Config:
    sizes = {"embedding_size": 300, "hidden_size": 256}
    dropout = {"dropout_rate": 0.5, "word_dropout_rate": 0.2}
    return Config(
        workdir="runs/lstm-sentiment",
        steps=2400,
        batch_size=128,
        eval_every=400,
        model=ModelConfig("lstm_classifier", {**sizes, **dropout, "pooling": "max"}),
        data=LabelledTextConfig("sst2", tokenizer="word", vocab_size=20_000, context=48),
        task=Classification(label_smoothing=0.1),
        optimizer=OptimizerConfig("adamw", 1e-3, warmup_steps=100, weight_decay=0.1, clip_norm=1.0, ema=0.998),
        log=LogConfig(every=200),
    )
