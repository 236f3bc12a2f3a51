"""python -m train RECIPE | ./my_recipe.py | list [RECIPE] | status RUN | evaluate NAME | report RUN | sweep RECIPE"""

import time

from flaxzoo import check_names
from train.memory import use_large_pages

if __name__ == "__main__":
    check_names("zoo")
    use_large_pages()  # before anything takes time to import

_STARTED = time.perf_counter()

import dataclasses  # noqa: E402
import os  # noqa: E402
import pathlib  # noqa: E402
import sys  # noqa: E402
from typing import Any  # noqa: E402

from train import recipes  # noqa: E402
from zoo.errors import exit_status  # noqa: E402

COMMANDS = ("list", "status", "evaluate", "report", "sweep")
USAGE = f"""{__doc__}

  python -m train list                 the recipes: data, result, time
  python -m train list cnn             one recipe in detail
  python -m train cnn                  run one; --help lists its settings
  python -m train cnn --resume         continue where it was stopped or killed
  python -m train status runs/cnn      whether it lives, its step, rate, time left, last metrics and checkpoint
  python -m train evaluate runs/cnn    metrics of a run, or of a model with --weights, on a data set
  python -m train report runs/cnn      learning curves, mistakes, what the model looks at, as one page
  python -m train sweep cnn --space S  the best settings within a space, by short and long runs
  python -m train ./my_recipe.py       a recipe of your own: a file with a function config()"""


def main(argv: list[str] | None = None) -> int:
    """Runs one command; its exit status."""
    args = sys.argv[1:] if argv is None else argv
    return exit_status(lambda: _run(args), "training needs the extra: pip install 'flaxzoo[train]'")


def _run(args: list[str]) -> None:
    if not args or args[0] in ("-h", "--help"):
        print(USAGE)
    elif args[0] == "list":
        print(recipes.load_recipe(args[1]).__doc__ if len(args) > 1 else recipes.table())
    elif args[0] == "status":
        from train.commands.status import status_command

        status_command(args[1:])
    elif args[0] == "evaluate":
        from train.commands.evaluate import evaluate_command

        use_compilation_cache()
        evaluate_command(args[1:])
    elif args[0] == "report":
        from train.commands.report import report_command

        use_compilation_cache()
        report_command(args[1:])
    elif args[0] == "sweep":
        from train.commands.sweep import sweep_command

        use_compilation_cache()
        sweep_command(args[1:], COMMANDS)
    else:
        train_recipe(args[0], args[1:])


def train_recipe(name: str, args: list[str]) -> None:
    """Runs a recipe with flags; with --resume the flags change the folder's settings."""
    import tyro

    from train import processes
    from train.config import Config, read_settings, recipe_config
    from train.first_weights import without_defaults
    from train.loop import run
    from train.mesh import where_it_fits
    from zoo.run import read_config

    module, default = recipe_config(name, COMMANDS)
    prog = f"python -m train {name}"
    options: dict[str, Any] = {"prog": prog, "config": (tyro.conf.AvoidSubcommands,)}
    config = tyro.cli(Config, args=args, default=default, description=module.__doc__, **options)
    folder = pathlib.Path(config.workdir).expanduser()
    if config.resume and (folder / "config.json").exists():
        stored = read_settings(read_config(folder).get("config"))
        stored = dataclasses.replace(stored, workdir=config.workdir, distributed=None)  # which is given to each run
        config = tyro.cli(Config, args=args, default=dataclasses.replace(stored, mesh=""), **options)
        if config.mesh == "":  # no flag gives one
            processes.start(config.distributed)  # before JAX is asked for its devices
            config = dataclasses.replace(config, mesh=where_it_fits(stored.mesh, config.parallel))
    else:
        config = without_defaults(config, default)
    use_compilation_cache()
    run(config, time.perf_counter() - _STARTED, recipe=name)


def use_compilation_cache() -> None:
    """Keeps compiled programs between runs, in $JAX_COMPILATION_CACHE_DIR or the user's cache folder."""
    import jax

    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR") or os.path.expanduser("~/.cache/flaxzoo/jax")
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


if __name__ == "__main__":
    sys.exit(main())
