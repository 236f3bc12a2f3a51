"""Summaries: the standard library's short functions to the first lines of their docstrings; offline.

    python -m train summaries

    Data: the standard library's sources
    Result: not run
    Time: not run

A table of texts and summaries, --data.path FILE.tsv, trains the same way.
"""

from train import Config, LogConfig, ModelConfig, OptimizerConfig, PairData, Translation


def config() -> Config:
    sizes = {"hidden_size": 128, "num_layers": 2, "num_heads": 4, "mlp_size": 512, "norm_first": True}
    return Config(
        workdir="runs/summaries",
        steps=800,
        batch_size=32,
        eval_every=200,
        model=ModelConfig("transformer_base", {**sizes, "dropout_rate": 0.2}),
        data=PairData(
            "docstrings", source_tokenizer="bpe", target_tokenizer="bpe", vocab_size=2000, shared_vocabulary=True
        ),
        task=Translation(label_smoothing=0.1),
        optimizer=OptimizerConfig("adamw", 2e-3, warmup_steps=100, weight_decay=0.01, clip_norm=1.0),
        log=LogConfig(every=100),
    )
