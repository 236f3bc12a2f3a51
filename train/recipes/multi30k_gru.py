"""Captions from German to English by a GRU with additive attention (Bahdanau et al. 2015).

    python -m train multi30k-gru

    Data: Multi30k, German to English
    Result: test2016 41.2 BLEU, lower-cased (seed 0)
    Time: 1,184 s

Beam 5; 4.6 % of the captions match exactly. With --task.spacy-language en, on spaCy's tokens, it has 41.3 BLEU, where
others report 28.3 for such a model over words.
"""

from train import Config, LogConfig, ModelConfig, OptimizerConfig, PairData, Translation


def config() -> Config:
    sizes = {"embedding_size": 256, "hidden_size": 512, "attention_size": 256, "maxout_size": 256}
    return Config(
        workdir="runs/multi30k-gru",
        steps=2400,
        batch_size=64,
        eval_every=800,
        model=ModelConfig("seq2seq_gru_attention", {**sizes, "dropout_rate": 0.3}),
        data=PairData(
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
