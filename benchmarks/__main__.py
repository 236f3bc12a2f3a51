"""python -m benchmarks list | run NAME... | NAME [flags] | compare A.csv B.csv | plot FILE | readme"""

import os
import sys

from train.memory import use_large_pages
from zoo.errors import exit_status, unknown

CACHED = ("start", "shakespeare", "quality")  # time whole runs, which have the cache that a user has


def main(argv: list[str] | None = None) -> int:
    """Runs one command; its exit status."""
    args = sys.argv[1:] if argv is None else argv
    return exit_status(lambda: _run(args), "benchmarks need the extra: pip install '.[benchmarks]'")


def _run(args: list[str]) -> None:
    import tyro

    from benchmarks.suite import commands

    if not args or args[0] in ("list", "-h", "--help"):
        for name, command in commands().items():
            print(f"python -m benchmarks {name:<14} {(command.config.__doc__ or '').splitlines()[0]}")
        return
    if args[0] not in commands():
        raise unknown("benchmark", args[0], [*commands(), "list"])
    config, run = commands()[args[0]]
    if args[0] not in CACHED:
        import jax

        jax.config.update("jax_enable_compilation_cache", False)  # seconds to compile, not to look up
        os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"
    run(tyro.cli(config, args=args[1:], prog=f"python -m benchmarks {args[0]}"))


if __name__ == "__main__":
    use_large_pages()  # as the trainer has them
    sys.exit(main())
