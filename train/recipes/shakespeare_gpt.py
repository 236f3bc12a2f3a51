"""A character GPT of Shakespeare's plays, in the sizes of nanoGPT's recipe for a CPU: four layers of 128, context 64.

python -m train shakespeare-gpt
"""

from train import Config, LanguageModel, LogConfig, ModelConfig, OptimizerConfig, TextConfig


def config() -> Config:
    return Config(
        workdir="runs/shakespeare-gpt",
        steps=2000,
        batch_size=32,
        eval_every=1000,
        model=ModelConfig("nanogpt_4x128"),
        data=TextConfig("tiny_shakespeare", context=64),
        task=LanguageModel(),
        optimizer=OptimizerConfig("muon", 1e-2, warmup_steps=100, weight_decay=0.01, clip_norm=1.0),
        log=LogConfig(every=200),
    )
