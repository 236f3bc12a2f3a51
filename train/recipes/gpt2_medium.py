"""GPT-2 medium, 355 million parameters, on a folder of text (Radford et al. 2019; rates of Brown et al. 2020).

    python -m train gpt2-medium --data.path DIR

    Data: a folder of text
    Result: not run
    Time: not run

Files are documents, packed into windows of 1,024 tokens. A step has 512 windows, half a million tokens, in eight
micro-batches; all steps have ten billion tokens. Compiled ahead of time for eight TPU v5e of 16 GB, a chip holds 4.3 GB
of state and batch and 8.4 GB of temporaries:

    pip install '.[tpu]' && python -m benchmarks tpu --recipe gpt2-medium --no-largest
"""

from train import Config, LanguageModel, LogConfig, ModelConfig, OptimizerConfig, TextData


def config() -> Config:
    return Config(
        workdir="runs/gpt2-medium",
        steps=20_000,
        batch_size=512,
        eval_every=1000,
        model=ModelConfig("gpt2_medium", {"dtype": "bfloat16", "scan_layers": True, "remat": "dots"}),
        data=TextData(path="texts", tokenizer="bpe", vocab_size=50_304, context=1024, packed=True),
        task=LanguageModel(z_loss=1e-4),
        optimizer=OptimizerConfig(
            "adamw",
            3e-4,
            schedule="wsd",
            warmup_steps=700,
            weight_decay=0.1,
            clip_norm=1.0,
            accumulate=8,
            args={"b2": 0.95},
        ),
        log=LogConfig(every=100),
    )
