"""A character Transformer on text that every machine has: the standard library's own sources, four modules held out.

python -m train transformer
"""

from train import Config, LanguageModel, LogConfig, ModelConfig, OptimizerConfig, TextConfig


def config() -> Config:
    return Config(
        workdir="runs/transformer",
        steps=1000,
        batch_size=32,
        eval_every=500,
        model=ModelConfig("nanogpt", {"hidden_size": 192, "num_layers": 4, "num_heads": 6}),
        data=TextConfig("stdlib", context=128),
        task=LanguageModel(),
        optimizer=OptimizerConfig("muon", 1e-2, warmup_steps=50, weight_decay=0.01, clip_norm=1.0),
        log=LogConfig(every=100),
    )
