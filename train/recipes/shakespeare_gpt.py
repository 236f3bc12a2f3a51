"""A character GPT of Shakespeare's plays in the sizes of nanoGPT's CPU recipe: four layers of 128, context 64.

    python -m train shakespeare-gpt

    Data: tiny Shakespeare
    Result: test 1.688 nats, validation 1.598 nats (seeds 0, 1, 2)
    Time: 62 to 155 s

Validation and test are the last two twentieths of the text, each window of 64 read by itself.
"""

from train import Config, LanguageModel, LogConfig, ModelConfig, OptimizerConfig, TextData


def config() -> Config:
    return Config(
        workdir="runs/shakespeare-gpt",
        steps=720,
        batch_size=32,
        eval_every=360,
        model=ModelConfig("nanogpt_4x128"),
        data=TextData("tiny_shakespeare", context=64),
        task=LanguageModel(),
        optimizer=OptimizerConfig("muon", 3e-2, warmup_steps=50, weight_decay=0.01, clip_norm=1.0),
        log=LogConfig(every=240),
    )
