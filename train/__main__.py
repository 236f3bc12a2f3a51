"""python -m train RECIPE | list | status RUN | evaluate RUN_OR_NAME | report RUN | ./my_recipe.py"""

import time

from train.memory import use_large_pages

if __name__ == "__main__":
    use_large_pages()  # before anything takes time to import

_STARTED = time.perf_counter()

import dataclasses  # noqa: E402
import importlib.util  # noqa: E402
import os  # noqa: E402
import pathlib  # noqa: E402
import sys  # noqa: E402
from types import ModuleType  # noqa: E402
from typing import Any  # noqa: E402

from zoo.errors import ZooError, exit_status, unknown  # noqa: E402

RECIPES = pathlib.Path(__file__).parent / "recipes"
USAGE = f"""{__doc__}

  python -m train list                 the recipes, what each costs and reaches
  python -m train cnn                  run one; --help lists its settings
  python -m train cnn --resume         go on where it was stopped or killed
  python -m train status runs/cnn      whether it lives, its step, rate, time left, last metrics and checkpoint
  python -m train evaluate runs/cnn    metrics of a run, or of a model with --weights, on a data set
  python -m train report runs/cnn      learning curves, confusion, worst mistakes, Grad-CAM, as one page
  python -m train ./my_recipe.py       a recipe of your own: a file with a function config()"""


def main(argv: list[str] | None = None) -> int:
    """Runs one command; its exit status."""
    args = sys.argv[1:] if argv is None else argv
    return exit_status(lambda: _run(args), "training needs the extra: pip install 'flaxzoo[train]'")


def _run(args: list[str]) -> None:
    if not args or args[0] in ("-h", "--help"):
        print(USAGE)
    elif args[0] == "list":
        list_recipes()
    elif args[0] == "status":
        from train.status import status_command

        status_command(args[1:])
    elif args[0] == "evaluate":
        from train.evaluate import evaluate_command

        use_compilation_cache()
        evaluate_command(args[1:])
    elif args[0] == "report":
        from train.pictures import report_command

        use_compilation_cache()
        report_command(args[1:])
    else:
        train_recipe(args[0], args[1:])


def list_recipes() -> None:
    """Prints every recipe's docstring."""
    for name, path in recipe_files().items():
        text = (importlib.import_module(f"train.recipes.{path.stem}").__doc__ or "").strip()
        print(f"{name}\n    " + text.replace("\n", "\n    ").replace("\n    \n", "\n"))


def train_recipe(name: str, args: list[str]) -> None:
    """Runs a recipe with flags; on --resume the flags are read against the folder's settings."""
    import tyro

    from train import processes
    from train.config import Config, from_json
    from train.loop import run
    from train.mesh import where_it_fits
    from zoo.run import read_config

    module = load_recipe(name, ("list", "status", "evaluate", "report"))
    if not callable(getattr(module, "config", None)):
        raise ZooError(f"the recipe {name} has no function config() that returns a train.Config")
    default = module.config()
    if not isinstance(default, Config):
        raise ZooError(f"config() of the recipe {name} must return a train.Config, not {type(default).__name__}")
    prog = f"python -m train {name}"
    options: dict[str, Any] = {"prog": prog, "config": (tyro.conf.AvoidSubcommands,)}
    config = tyro.cli(Config, args=args, default=default, description=module.__doc__, **options)
    folder = pathlib.Path(config.workdir).expanduser()
    if config.resume and (folder / "config.json").exists():
        stored = from_json(read_config(folder).get("config"))
        stored = dataclasses.replace(stored, workdir=config.workdir, distributed=None)  # whom to join is said anew
        config = tyro.cli(Config, args=args, default=dataclasses.replace(stored, mesh=""), **options)
        if config.mesh == "":  # no flag gives one
            processes.start(config.distributed)  # before JAX is asked for its devices
            config = dataclasses.replace(config, mesh=where_it_fits(stored.mesh, config.parallel))
    use_compilation_cache()
    run(config, time.perf_counter() - _STARTED)


def load_recipe(name: str, commands: tuple[str, ...] = ()) -> ModuleType:
    """The module of a recipe: a name of `python -m train list`, or the path of a .py file. `commands` may be meant."""
    files = recipe_files()
    if name in files:
        return importlib.import_module(f"train.recipes.{files[name].stem}")
    path = pathlib.Path(name)
    if path.suffix != ".py":
        raise unknown("recipe", name, [*files, *commands])
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise ZooError(f"no recipe file {name!r}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def recipe_files() -> dict[str, pathlib.Path]:
    """Recipes by name: cifar10_resnet20.py is cifar10-resnet20."""
    return {path.stem.replace("_", "-"): path for path in sorted(RECIPES.glob("*.py")) if path.stem != "__init__"}


def use_compilation_cache() -> None:
    """Keeps compiled programs between runs, in $JAX_COMPILATION_CACHE_DIR or the user's cache folder."""
    import jax

    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR") or os.path.expanduser("~/.cache/flaxzoo/jax")
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


if __name__ == "__main__":
    sys.exit(main())
