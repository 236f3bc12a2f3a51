"""A character Transformer of the standard library's own sources, four modules held out; offline.

    python -m train transformer

    Data: the standard library's sources
    Result: validation 1.841 nats, 2.66 bits per character (seeds 0, 1, 2)
    Time: 137 to 252 s

It ends with a sample. The text depends on the Python version; the result is of Python 3.11.7.
"""

from train import Config, LanguageModel, LogConfig, ModelConfig, OptimizerConfig, TextData


def config() -> Config:
    return Config(
        workdir="runs/transformer",
        steps=400,
        batch_size=16,
        eval_every=200,
        model=ModelConfig("nanogpt", {"hidden_size": 128, "num_layers": 4, "num_heads": 4}),
        data=TextData("stdlib", context=128),
        task=LanguageModel(),
        optimizer=OptimizerConfig("muon", 1e-2, warmup_steps=50, weight_decay=0.01, clip_norm=1.0),
        log=LogConfig(every=100),
    )
