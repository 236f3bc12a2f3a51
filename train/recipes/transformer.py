"""A character Transformer on text that every machine has: the standard library's own sources, four modules held out.

python -m train transformer

62 seconds on two cores that did little else, with the compilation cache warm; 1.826 nats or 2.64 bits a character on
the four modules (Python 3.11.7, seed 0). It ends with a sample.
"""

from train import Config, LanguageModel, LogConfig, ModelConfig, OptimizerConfig, TextConfig


def config() -> Config:
    return Config(
        workdir="runs/transformer",
        steps=400,
        batch_size=16,
        eval_every=200,
        model=ModelConfig("nanogpt", {"hidden_size": 128, "num_layers": 4, "num_heads": 4}),
        data=TextConfig("stdlib", context=128),
        task=LanguageModel(),
        optimizer=OptimizerConfig("muon", 1e-2, warmup_steps=50, weight_decay=0.01, clip_norm=1.0),
        log=LogConfig(every=100),
    )
