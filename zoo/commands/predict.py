"""python -m zoo predict: the classes of images and texts, or the tokens of a text at its [MASK]."""

from typing import Any

import zoo
from zoo.errors import ZooError


def add(commands: Any) -> None:
    command = commands.add_parser("predict", help="classify image files or texts with a trained model")
    command.add_argument("run_folder", metavar="RUN", help="a run folder, or a model whose weights come with the zoo")
    command.add_argument("raws", nargs="+", metavar="IMAGE_OR_TEXT")
    command.add_argument("--top", type=int, default=3, help="classes to print for each")
    command.set_defaults(run=lambda args: predict(args.run_folder, args.raws, args.top))


def predict(folder: str, raws: list[str], top: int = 3) -> None:
    """Prints the most probable classes of each image file or text. An unreadable file is an error before anything is
    predicted."""
    import jax
    import numpy as np

    if top < 1:
        raise ZooError(f"--top must be at least 1, not {top}")
    model, variables, inputs = zoo.load(folder)
    if getattr(model, "output", None) == "tokens" and not inputs.labels:
        return fill(model, variables, inputs, raws, top)
    if not inputs.labels:
        others = {"pair": ("an encoder-decoder", "translate"), "series": ("a forecaster", "forecast")}
        what, verb = others.get(inputs.kind, ("a language model", "generate"))
        raise ZooError(f"{folder!r} has no classes: it is {what} (python -m zoo {verb} {folder})")
    args, kwargs = inputs.arguments(inputs.batch(raws))
    logits = np.asarray(model.apply(variables, *args, **kwargs), np.float32)
    exclusive = getattr(inputs, "exclusive", True)
    probabilities = np.asarray(jax.nn.softmax(logits) if exclusive else jax.nn.sigmoid(logits))
    for raw, row in zip(raws, probabilities, strict=True):
        best = np.argsort(-row)[:top] if exclusive else np.flatnonzero(row > 0.5)
        print(f"{raw}: " + ", ".join(f"{inputs.labels[i]} {row[i]:.1%}" for i in best))


def fill(model: Any, variables: Any, inputs: Any, raws: list[str], top: int) -> None:
    """Prints the most probable tokens at each [MASK] of the texts."""
    import jax
    import numpy as np

    batch = inputs.batch(raws)
    args, kwargs = inputs.arguments(batch)
    probabilities = np.asarray(jax.nn.softmax(model.apply(variables, *args, **kwargs).astype(np.float32)))
    for raw, tokens, rows in zip(raws, batch["tokens"], probabilities, strict=True):
        places = np.flatnonzero(tokens == inputs.mask)
        if not len(places):
            raise ZooError(f"{raw!r} has no [MASK] to predict")
        for place in places:
            best = np.argsort(-rows[place])[:top]
            print(f"{raw}: " + ", ".join(f"{inputs.decode([token])} {rows[place, token]:.1%}" for token in best))
