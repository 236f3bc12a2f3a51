"""python run.py TEXT: the labels of a text, or the model's output for it. It needs JAX, flatbuffers and NumPy, and
tokenizers where there is a tokenizer.json."""

import sys

import numpy as np
from program import ABOUT, program
from tokens import encode

if len(sys.argv) != 2:
    sys.exit("usage: python run.py TEXT")
tokens = encode(sys.argv[1], ABOUT["inputs"])
if not tokens or min(tokens) < 0 or len(tokens) > (ABOUT["longest"] or len(tokens)):
    sys.exit(f"error: a text has 1 to {ABOUT['longest']} known tokens, not {tokens}")
found = np.asarray(program("forward")(np.array([tokens], np.int32), np.array([len(tokens)], np.int32)))[0]
if not ABOUT["inputs"]["labels"]:
    print(found)
    sys.exit()
scores = np.exp(found - found.max())
for i in np.argsort(-scores)[:3]:
    print(f"{ABOUT['inputs']['labels'][i]} {scores[i] / scores.sum():.4f}")
