"""A character GPT of Shakespeare's plays, in the sizes of nanoGPT's recipe for a CPU: four layers of 128, context 64.

python -m train shakespeare-gpt

62 seconds on two cores from a cold start; 1.596 nats a character on validation, 1.687 on test, the last two twentieths
of the text, each window of 64 read by itself (seed 0).
"""

from train import Config, LanguageModel, LogConfig, ModelConfig, OptimizerConfig, TextConfig


def config() -> Config:
    return Config(
        workdir="runs/shakespeare-gpt",
        steps=720,
        batch_size=32,
        eval_every=360,
        model=ModelConfig("nanogpt_4x128"),
        data=TextConfig("tiny_shakespeare", context=64),
        task=LanguageModel(),
        optimizer=OptimizerConfig("muon", 3e-2, warmup_steps=50, weight_decay=0.01, clip_norm=1.0),
        log=LogConfig(every=240),
    )
