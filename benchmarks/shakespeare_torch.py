"""nanoGPT's recipe for a CPU in PyTorch, without JAX: python -m benchmarks.shakespeare_torch TOKENS.npz STEPS SEED

AdamW at 1e-3 after 100 steps of warm-up, with cosine decay to 1e-4; batches of 12 random windows of 64 tokens. Prints
JSON: `loss` over all consecutive windows of the validation tokens, and `seconds` of the steps alone.
"""

import json
import math
import os
import sys
import time

import numpy as np
import torch

from benchmarks.torch_gpt import TorchGPT

CONTEXT, BATCH, WARMUP, PEAK, LEAST = 64, 12, 100, 1e-3, 1e-4


def learning_rate(step: int, steps: int) -> float:
    if step < WARMUP:
        return PEAK * (step + 1) / (WARMUP + 1)
    return LEAST + 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / max(steps - WARMUP, 1))) * (PEAK - LEAST)


def train(tokens: torch.Tensor, vocab_size: int, steps: int, seed: int) -> torch.nn.Module:
    """The trained model."""
    torch.manual_seed(seed)
    model = TorchGPT(vocab_size, CONTEXT, 128, 4, 4)
    decayed = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    spared = [parameter for parameter in model.parameters() if parameter.dim() < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": spared, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK, betas=(0.9, 0.99))
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        starts = torch.randint(len(tokens) - CONTEXT, (BATCH, 1))
        rows = tokens[starts + torch.arange(CONTEXT + 1)]
        logits = model(rows[:, :-1])
        optimizer.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model


@torch.no_grad()
def loss_of(model: torch.nn.Module, tokens: torch.Tensor) -> float:
    """Nats per token over the consecutive full windows."""
    count = (len(tokens) - 1) // CONTEXT
    inputs, targets = (tokens[i : i + count * CONTEXT].view(count, CONTEXT) for i in (0, 1))
    total = 0.0
    for rows, expected in zip(inputs.split(256), targets.split(256), strict=True):
        logits = model(rows).flatten(0, 1)
        total += float(torch.nn.functional.cross_entropy(logits, expected.flatten(), reduction="sum"))
    return total / (count * CONTEXT)


def main(path: str, steps: int, seed: int) -> None:
    torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    with np.load(path) as arrays:
        training, validation = (torch.from_numpy(arrays[name].astype(np.int64)) for name in ("train", "validation"))
    start = time.perf_counter()
    model = train(training, int(training.max()) + 1, steps, seed)
    seconds = time.perf_counter() - start
    print(json.dumps({"loss": loss_of(model, validation), "seconds": seconds}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
