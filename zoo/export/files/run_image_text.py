"""python run.py photo.png "a cat" "a dog": how well texts describe an image. It needs JAX, flatbuffers, NumPy, Pillow
and tokenizers."""

import sys

import numpy as np
from picture import picture
from program import ABOUT, program
from tokens import encode

if len(sys.argv) < 3:
    sys.exit("usage: python run.py photo.png TEXT...")
rows = [encode(text, ABOUT["inputs"]["text"]) for text in sys.argv[2:]]
if max(map(len, rows)) > ABOUT["longest"]:
    sys.exit(f"error: a text has at most {ABOUT['longest']} tokens, not {max(map(len, rows))}")
tokens = np.array([row + [0] * (max(map(len, rows)) - len(row)) for row in rows], np.int32)
logits = program("forward")(picture(sys.argv[1]), tokens, np.array([*map(len, rows)], np.int32))
scores = np.asarray(np.exp(logits - np.max(logits)))[0]
for i in np.argsort(-scores):
    print(f"{sys.argv[2 + i]} {scores[i] / scores.sum():.4f}")
