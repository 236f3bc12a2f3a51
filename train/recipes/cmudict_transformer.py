"""How a word is said: from its letters to its phones, by a small Transformer on the CMU dictionary.

    python -m train cmudict-transformer

Not run yet. Meant for 45 minutes on two cores of 150 GFLOP/s, and for a word error of under 27 % and a phone error
(error_rate) of under 7 % on test.
"""

from train import Config, LogConfig, ModelConfig, OptimizerConfig, PairsConfig, Translation


def config() -> Config:
    sizes = {"hidden_size": 192, "num_layers": 3, "num_heads": 6, "mlp_size": 768, "norm_first": True}
    return Config(
        workdir="runs/cmudict-transformer",
        steps=5000,
        batch_size=128,
        eval_every=1000,
        model=ModelConfig("transformer_base", {**sizes, "dropout_rate": 0.1}),
        data=PairsConfig("cmudict", source="word", target="phones", target_tokenizer="word"),
        task=Translation(label_smoothing=0.1),
        optimizer=OptimizerConfig("adamw", 1e-3, warmup_steps=500, weight_decay=0.01, clip_norm=1.0, ema=0.999),
        log=LogConfig(every=200),
    )
