"""Captions from German to English: a Transformer of five million parameters on Multi30k, the two sharing 5,000 pieces.

    python -m train multi30k-transformer

2,387 seconds on two cores that other work kept busy. Test2016, lower-cased, beam 5, seed 0: 39.6 BLEU as sacreBLEU has
it, 4.0 % word for word. On spaCy's tokens (python -m train evaluate RUN --task.spacy-language en) 39.7, where others
report 36.5 of a Transformer of nine million that reads words.
"""

from train import Config, LogConfig, ModelConfig, OptimizerConfig, PairsConfig, Translation


def config() -> Config:
    sizes = {"hidden_size": 256, "num_layers": 3, "num_heads": 8, "mlp_size": 512, "norm_first": True}
    return Config(
        workdir="runs/multi30k-transformer",
        steps=6000,
        batch_size=64,
        eval_every=1000,
        model=ModelConfig("transformer_base", {**sizes, "dropout_rate": 0.2}),
        data=PairsConfig(
            "multi30k",
            source="de",
            target="en",
            source_tokenizer="bpe",
            target_tokenizer="bpe",
            vocab_size=5000,
            shared_vocabulary=True,
            lowercase=True,
        ),
        task=Translation(label_smoothing=0.1),
        optimizer=OptimizerConfig("adamw", 1e-3, warmup_steps=400, weight_decay=0.01, clip_norm=1.0, ema=0.999),
        log=LogConfig(every=100),
    )
