"""python run.py photo.png: the most probable labels of an image. It needs JAX, flatbuffers, NumPy and Pillow."""

import sys

import numpy as np
from picture import picture
from program import ABOUT, program

if len(sys.argv) != 2:
    sys.exit("usage: python run.py photo.png")
logits = np.asarray(program("forward")(picture(sys.argv[1])))[0]
if not ABOUT["inputs"]["labels"]:
    print(logits)
    sys.exit()
scores = np.exp(logits - logits.max())
scores = scores / scores.sum() if ABOUT["inputs"]["exclusive"] else 1 / (1 + np.exp(-logits))
for i in np.argsort(-scores)[:3]:
    print(f"{ABOUT['inputs']['labels'][i]} {scores[i]:.4f}")
