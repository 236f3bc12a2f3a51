"""python -m zoo list, show: the registered models."""

from typing import Any

import zoo
from zoo.errors import ZooError


def add(commands: Any) -> None:
    command = commands.add_parser("list", help="registered models")
    command.add_argument("glob", nargs="?", default="*", help="a shell pattern, such as 'resnet*'")
    command.add_argument("--family", help="cnn, ...")
    command.add_argument("--weights", action="store_true", help="their public weights, the default of each first")
    command.set_defaults(run=lambda args: (list_weights if args.weights else list_models)(args.glob, args.family))
    command = commands.add_parser("show", help="one model: parameters, FLOPs, layers, paper")
    command.add_argument("name")
    command.set_defaults(run=lambda args: show(args.name))


def list_models(glob: str, family: str | None) -> None:
    """Prints name, parameters, GFLOPs per example and input shape of every matching model."""
    names = zoo.list_models(glob, family)
    if not names:
        raise ZooError(f"no model matches {glob!r}; there are {', '.join(zoo.list_models())}")
    print(f"{'name':<20} {'parameters':>12} {'GFLOPs':>8}  input")
    for name in names:
        info = zoo.model_info(name)
        shape = "x".join(map(str, info.input_shape))
        print(f"{name:<20} {info.parameters:>12,} {info.flops / 1e9:>8.3f}  {shape}")


def list_weights(glob: str, family: str | None) -> None:
    """Prints the weights that come with the zoo, and the public ones, of every matching model that has some."""
    found = [(name, row) for name in zoo.list_models(glob, family) for row in sources(zoo.model_info(name))]
    if not found:
        raise ZooError(f"no model that matches {glob!r} has public weights")
    print(f"{'name':<20} {'weights':<44} {'licence':<14} {'input':>6}  published figure")
    for name, row in found:
        print(f"{name:<20} {row[0]:<44} {row[1]:<14} {row[2]:>6}  {row[3]}".rstrip())


def sources(info: zoo.ModelInfo) -> list[tuple[str, str, int, str]]:
    """The weights of a model: where they are, licence, size of the input, and figure."""
    own = info.pretrained
    rows = (
        [("(with the zoo)", own["licence"], info.input_shape[0], f"{own['accuracy']} of {own['data']}")] if own else []
    )
    for source in info.sources:
        figure = f"{source.value:g} {source.metric}" if source.metric else ""
        rows.append((f"hf:{source.repository}", source.license, source.input_size, figure))
    return rows


def show(name: str) -> None:
    """Prints a model's card and its layers."""
    import flax.linen as nn
    import jax

    info = zoo.model_info(name)
    model = info.constructor()
    print(f"{name}: {info.parameters:,} parameters, {info.flops / 1e9:.3f} GFLOPs an example, {info.family}")
    args, kwargs = info.example()
    for key, array in {"input": args[0], **kwargs}.items():
        print(f"{key}: {array.dtype} [batch, {', '.join(map(str, array.shape[1:]))}]")
    if info.paper:
        print(f"paper: {info.paper}")
    if info.pretrained:
        print("weights: " + ", ".join(f"{key} {value}" for key, value in info.pretrained.items()))
    for repository, license_, _, figure in sources(info)[bool(info.pretrained) :]:
        print(f"weights: {repository}, {license_}" + (f", {figure}" if figure else ""))
    print("fields: " + ", ".join(f"{key}={_plain(value)}" for key, value in info.fields.items()))
    shapes = (f"{key} [{', '.join(map(str, shape))}]" for key, shape in info.features.items())
    print("features: " + ", ".join(shapes))
    tabulate = nn.tabulate(model, jax.random.key(0), depth=2, console_kwargs={"width": 120, "force_terminal": False})
    args, kwargs = jax.tree.map(lambda array: jax.numpy.zeros(array.shape, array.dtype), (args, kwargs))
    print(tabulate(*args, **kwargs))


def _plain(value: object) -> str:
    return getattr(value, "__name__", None) or str(value)
