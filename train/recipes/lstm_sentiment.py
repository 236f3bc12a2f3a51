"""Good or bad: the phrases of film reviews of SST-2, by a bidirectional LSTM over words, from scratch.

python -m train lstm-sentiment
"""

from train import Classification, Config, LabelledTextConfig, LogConfig, ModelConfig, OptimizerConfig


def config() -> Config:
    sizes = {"embedding_size": 300, "hidden_size": 256}
    fields = {
        **sizes,
        "embedding_size": 128,
        "hidden_size": 128,
        "pooling": "max",
        "dropout_rate": 0.5,
        "word_dropout_rate": 0.1,
    }
    return Config(
        workdir="runs/lstm-sentiment",
        steps=2400,
        batch_size=128,
        eval_every=400,
        model=ModelConfig("lstm_classifier", fields),
        data=LabelledTextConfig("sst2", tokenizer="word", vocab_size=20_000, context=48),
        task=Classification(),
        optimizer=OptimizerConfig("adamw", 2e-3, warmup_steps=100, weight_decay=0.05, clip_norm=1.0, ema=0.998),
        log=LogConfig(every=200),
    )
