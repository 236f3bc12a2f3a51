"""python run.py table.csv: the forecast of a table's next rows. It needs JAX, flatbuffers and NumPy."""

import csv
import sys

import numpy as np
from program import ABOUT, program

if len(sys.argv) != 2:
    sys.exit("usage: python run.py table.csv")
about = ABOUT["inputs"]
with open(sys.argv[1], encoding="utf-8-sig", newline="") as file:
    table = np.array([[row[name] for name in about["columns"]] for row in csv.DictReader(file)], np.float64)
if len(table) < about["horizon"]:
    sys.exit(f"error: a table has at least {about['horizon']} rows, not {len(table)}")
mean, std = np.array(about["mean"]), np.array(about["std"])
values = table if ABOUT["preprocess"] else (table - mean) / std
found = np.asarray(program("forward")(values[None].astype(np.float32)), np.float64)[0, -about["horizon"] :]
places = [about["columns"].index(name) for name in about["targets"]]
print(",".join(about["targets"]))
for row in found if ABOUT["preprocess"] else found * std[places] + mean[places]:
    print(",".join(f"{value:.6g}" for value in row))
