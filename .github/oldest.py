"""Prints the lower bounds of pyproject.toml as pip constraints: the oldest versions that are supported."""

import pathlib
import re
import tomllib

project = tomllib.loads((pathlib.Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
extras = project["optional-dependencies"]
extra = {
    requirement
    for name in ("train", "image", "text", "sweep", "wandb", "export", "test")
    for requirement in extras[name]
}
for requirement in sorted({*project["dependencies"], *extra}):
    if match := re.fullmatch(r"([\w.-]+)>=([\d.]+)", requirement):
        print(f"{match[1]}=={match[2]}")
print("jaxlib==" + next(r for r in project["dependencies"] if r.startswith("jax>=")).removeprefix("jax>="))
