"""python run.py SOURCE: the target by the most probable token at each step. It needs JAX, flatbuffers and NumPy, and
tokenizers where there is a tokenizer's JSON."""

import sys

import numpy as np
from program import ABOUT, program
from tokens import decode_target, encode_source

if len(sys.argv) != 2:
    sys.exit("usage: python run.py SOURCE")
tokens, found, token = encode_source(sys.argv[1], ABOUT["inputs"]), [], ABOUT["inputs"]["first"]
if not tokens or len(tokens) > ABOUT["longest_source"]:
    sys.exit(f"error: a source has 1 to {ABOUT['longest_source']} tokens, not {len(tokens)}")
state = program("encode")(np.array([tokens], np.int32), np.array([len(tokens)], np.int32))
step = program("decode")
for _ in range(ABOUT["longest"]):
    logits, state = step(np.array([token], np.int32), state)
    token = int(np.argmax(np.asarray(logits)[0, : ABOUT["vocab_size"]]))
    if token == ABOUT["inputs"]["end"]:
        break
    found.append(token)
print(decode_target(found, ABOUT["inputs"]))
