"""python run.py PROMPT [TOKENS]: the most probable next token, again and again. It needs JAX, flatbuffers and NumPy,
and tokenizers where there is a tokenizer.json."""

import sys

import numpy as np
from program import ABOUT, program
from tokens import decode, encode

if len(sys.argv) not in (2, 3):
    sys.exit("usage: python run.py PROMPT [TOKENS]")
tokens, steps = encode(sys.argv[1], ABOUT["inputs"]), int(sys.argv[2]) if len(sys.argv) == 3 else 100
tokens = tokens[: len(tokens) - ABOUT["closing"]]
room = steps if ABOUT["longest"] is None else ABOUT["longest"] - len(tokens)
if not tokens or min(tokens) < 0 or room < 1:
    sys.exit(f"error: a prompt has 1 to {ABOUT['longest']} known tokens with its answer, not {tokens}")
logits, state = program("prefill")(np.array([tokens], np.int32), np.array([len(tokens)], np.int32))
step = program("decode")
for _ in range(min(steps, room)):
    token = int(np.argmax(np.asarray(logits)[0, : ABOUT["vocab_size"]]))
    if token == ABOUT["end"]:
        break
    tokens.append(token)
    logits, state = step(np.array([token], np.int32), state)
print(decode(tokens, ABOUT["inputs"]))
