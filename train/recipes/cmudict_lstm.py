"""Pronunciation: from a word's letters to its phones, by an LSTM with attention (Luong et al. 2015).

python -m train cmudict-lstm

Data: CMUdict
Result: not run
Time: not run
"""

from train import Config, LogConfig, ModelConfig, OptimizerConfig, PairData, Translation


def config() -> Config:
    sizes = {"embedding_size": 128, "hidden_size": 320, "num_layers": 2}
    return Config(
        workdir="runs/cmudict-lstm",
        steps=8000,
        batch_size=128,
        eval_every=1000,
        model=ModelConfig("seq2seq_lstm_luong", {**sizes, "dropout_rate": 0.2}),
        data=PairData("cmudict", source="word", target="phones", target_tokenizer="word"),
        task=Translation(label_smoothing=0.1),
        optimizer=OptimizerConfig("adamw", 2e-3, warmup_steps=500, weight_decay=0.01, clip_norm=1.0, ema=0.999),
        log=LogConfig(every=200),
    )
