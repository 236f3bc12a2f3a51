"""Captions from German to English: a GRU that looks at the source before each piece (Bahdanau et al. 2015), Multi30k.

    python -m train multi30k-gru

Not run yet. Meant for 45 minutes on two cores of 150 GFLOP/s; 28.3 BLEU, which is 28.3 % on the scale of 1, is what
others report of such a model, lower-cased, on test2016.
"""

from train import Config, LogConfig, ModelConfig, OptimizerConfig, PairsConfig, Translation


def config() -> Config:
    sizes = {"embedding_size": 256, "hidden_size": 512, "attention_size": 256, "maxout_size": 256}
    return Config(
        workdir="runs/multi30k-gru",
        steps=2400,
        batch_size=64,
        eval_every=800,
        model=ModelConfig("seq2seq_gru_attention", {**sizes, "dropout_rate": 0.3}),
        data=PairsConfig(
            "multi30k",
            source="de",
            target="en",
            source_tokenizer="bpe",
            target_tokenizer="bpe",
            vocab_size=5000,
            lowercase=True,
        ),
        task=Translation(label_smoothing=0.1),
        optimizer=OptimizerConfig("adamw", 2e-3, warmup_steps=200, weight_decay=0.01, clip_norm=1.0, ema=0.999),
        log=LogConfig(every=100),
    )
