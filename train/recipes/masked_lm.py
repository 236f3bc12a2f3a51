"""A small BERT that tells hidden word pieces of the standard library's sources, four modules held out.

python -m train masked-lm

Two and a half minutes on two cores; 5.366 nats a hidden piece on the four modules, of which 8.2 % are told right
(Python 3.11.7, seed 0): so short a run is still close to a piece's frequency.
"""

from train import Config, LogConfig, MaskedLanguageModel, ModelConfig, OptimizerConfig, TextConfig


def config() -> Config:
    sizes = {"hidden_size": 128, "num_layers": 4, "num_heads": 4, "mlp_size": 512}
    return Config(
        workdir="runs/masked-lm",
        steps=1500,
        batch_size=16,
        eval_every=750,
        model=ModelConfig("bert_base", {**sizes, "dropout_rate": 0.0}),
        data=TextConfig("stdlib", tokenizer="wordpiece", vocab_size=1024, context=128),
        task=MaskedLanguageModel(),
        optimizer=OptimizerConfig("muon", 2e-2, warmup_steps=100, weight_decay=0.01, clip_norm=1.0),
        log=LogConfig(every=100),
    )
